"""A published text model as transformers reads it, by folder or hub id: CLIP, T5, Gemma, Llama, BERT and their like."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config

from pipeline.code import Condition, TextSpec
from pipeline.components import Arguments
from pipeline.language.text_model import (
    build_model,
    find_model,
    load_model,
    read_text_config,
    sizes_of,
    states_of,
)
from pipeline.language.words import Side, WithWords, pool, read_words, to_ids
from pipeline.nn.execution_device import execution_device
from pipeline.ranges import Count, Layers, Whole
from pipeline.saved_folders import fingerprint_files
from pipeline.text_encoders.base import TextEncoder, check_layers, finish
from pipeline.validation import SettingError
from pipeline.vision.named_model import NamedModel

Pooling = Literal["none", "model", "mean", "first", "last"]


class PretrainedText(WithWords, TextEncoder):
    """Hidden states of a text model: CLIP's and SigLIP's text half, T5's encoder, Gemma, Llama, BERT, ...

    `path` is a folder or a hub id whose weights are safetensors. A caption has `tokens` places: longer ones are cut,
    shorter ones padded at `side` (None: the tokenizer's) by the id `pad` (None: the tokenizer's). With
    `padding="masked"` the model does not see paddings and the mask is False there; with "kept" it reads them as tokens,
    and the mask is True everywhere: as Stable Diffusion reads CLIP and TA-TiTok its own (arXiv:2501.07730).

    `layers` are those whose states are joined, 0 for what the first one reads and -1 for the last, after the last norm.
    `pooling` makes the vector of a caption: "model" takes the model's own, of CLIP the projected one, the others the
    mean, the first or the last token of the last layer; with `unit_norm` it has length 1.

    For a hub id that is not on this machine `dim`, `depth` and, where it is pooled, `pooled` (channels, layers, and
    channels of the vector) are stated, so that a recipe is checked without network; they are verified on loading.
    `stock` is the config that a saved folder keeps; a recipe leaves it out.
    """

    @register_to_config
    def __init__(
        self,
        path: str,
        tokens: Count,
        layers: Layers = [-1],  # noqa: B006
        padding: Literal["masked", "kept"] = "masked",
        side: Side | None = None,
        pad: Whole | None = None,
        pooling: Pooling = "none",
        unit_norm: bool = False,
        dim: Count | None = None,
        depth: Count | None = None,
        pooled: Count | None = None,
        stock: dict[str, Any] | None = None,
    ):
        super().__init__()
        if stock is not None:
            self.model = build_model(stock, pooling == "model")  # `from_pretrained` fills it
            return
        folder = find_model(path)
        stock = read_text_config(folder)
        sizes = check_sizes(Arguments.from_config(self) | {"stock": stock})
        self.register_to_config(stock=stock, dim=sizes.dim, depth=sizes.layers, pooled=sizes.pooled or None)
        self.model, self.words = load_model(folder, pooling == "model"), read_words(folder)

    @classmethod
    def named_models(cls, arguments: Arguments) -> dict[str, NamedModel]:
        return {} if arguments.stock is not None else {"path": NamedModel(arguments.path, hub=True)}

    @classmethod
    def identity(cls, arguments: Arguments) -> str | None:
        return fingerprint_files(find_model(arguments.path))

    @classmethod
    def geometry(cls, arguments: Arguments) -> TextSpec:
        folder = None if arguments.stock is not None else NamedModel(arguments.path, hub=True).folder
        if folder is not None:
            arguments = arguments | {"stock": read_text_config(folder)}
        sizes = check_sizes(arguments)
        check_layers(arguments.layers, sizes.layers)
        return TextSpec(arguments.tokens, sizes.dim, len(arguments.layers), sizes.pooled)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        config = self.config
        if self.words is None:
            raise ValueError("this text encoder has no tokenizer; load it by from_pretrained")
        device = execution_device(self)
        ids, mask = (t.to(device) for t in to_ids(self.words, prompts, config.tokens, config.side, config.pad))
        seen = None if config.padding == "kept" else mask
        layers = check_layers(config.layers, config.depth)
        states, output = states_of(self.model, ids, seen, [*layers, config.depth], config.depth)
        vector = self.vector(output, states.pop(), mask)
        return finish(states, torch.ones_like(mask) if seen is None else mask, vector)

    def vector(self, output: Any, last: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
        """The vector of each caption [B, P], by the model's output and the states [B, T, dim] of its last layer."""
        if self.config.pooling == "none":
            return None
        vector = own_vector(output) if self.config.pooling == "model" else pool(last, mask, self.config.pooling)
        return F.normalize(vector.float(), dim=-1) if self.config.unit_norm else vector


def own_vector(output: Any) -> torch.Tensor:
    """The vector that a model makes of a text itself; ValueError where it makes none."""
    names = [name for name in ("text_embeds", "pooler_output") if output.get(name) is not None]
    if not names:
        raise ValueError("this model makes no vector of a text; set text.encoder.pooling=mean, last or none")
    return output[names[0]]


def check_sizes(arguments: Arguments) -> TextSpec:
    """Channels, layers and pooled channels by the config `stock`, or as stated; ValueError where these differ.

    The `tokens` of what is returned are those stated, and its `layers` all that the model has.
    """
    stated = {name: arguments[name] for name in ("dim", "depth", "pooled")}
    if arguments.stock is None:
        wanted = ("dim", "depth", *(["pooled"] if arguments.pooling == "model" else []))
        if missing := [name for name in wanted if stated[name] is None]:
            raise SettingError(
                missing[0],
                f" is not known, since {arguments.path} is not on this machine; state {' and '.join(wanted)} beside it",
            )
        known = stated | {"pooled": stated["pooled"] or stated["dim"]}
    else:
        sizes = sizes_of(arguments.stock)
        own = sizes.pooled if arguments.pooling == "model" else sizes.dim
        known = {"dim": sizes.dim, "depth": sizes.depth, "pooled": own}
        if sizes.positions is not None and arguments.tokens > sizes.positions:
            raise SettingError("tokens", f" is {arguments.tokens}, and the model has {sizes.positions} positions")
        for name, value in stated.items():
            if value not in (None, known[name]):
                raise SettingError(name, f" is {value}, but that of {arguments.path} is {known[name]}; correct it")
    pooled = 0 if arguments.pooling == "none" else known["pooled"]
    return TextSpec(arguments.tokens, known["dim"], known["depth"], pooled)
