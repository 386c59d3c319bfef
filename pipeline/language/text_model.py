"""The text halves of transformers' models: their config, their weights, and the states of their layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn

from pipeline.files.writing import read_json
from pipeline.stored_weights import CONFIG, build_on_meta, check_numbers, read_stored
from pipeline.vision.named_model import NamedModel

FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt"]  # of a model of the hub; no pickle
TEXT_HALVES = {  # the class of the text half by `model_type`; others are read by AutoModel, see `trimmed`
    **dict.fromkeys(("clip", "clip_text_model"), "CLIPTextModelWithProjection"),
    **dict.fromkeys(("siglip", "siglip_text_model"), "SiglipTextModel"),
    **{"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"},
}
PLACED = ("gpt2",)  # whose learned positions count from the first place, so that those of a padded text are stated
PROJECTED = ("clip", "clip_text_model")  # whose own vector of a caption is projected to the width of pictures' vectors


@dataclass(frozen=True)
class TextModelSizes:
    """What is known of a text model by its config."""

    dim: int  # channels of a hidden state
    depth: int  # layers
    pooled: int  # channels of the model's own vector of a text, if it has one
    positions: int | None  # tokens at most, where positions are learned


def find_model(path: str) -> Path:
    """The folder of a model by its path or hub id, fetched where it is not here; ValueError where there is none."""
    model = NamedModel(path, hub=True)
    if model.missing:
        raise ValueError(f"there is no folder {path} on this machine, and it is no id of the hub (owner/name)")
    if model.folder is not None:
        return model.folder
    try:
        return Path(snapshot_download(path, allow_patterns=FETCHED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path} is no folder here, and from the hub: {reason}") from None


def read_text_config(folder: Path) -> dict[str, Any]:
    """The config of the text half in a folder, as JSON values with its `model_type`; ValueError where it has none."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no {CONFIG}; name the folder of a model as transformers saves it")
    stated = read_json(folder / CONFIG)
    kind = stated.get("model_type")
    config = half_of(stated)
    check_numbers({name: value for name, value in stated.items() if isinstance(value, (int, dict, list))})
    return config.to_dict() | {"model_type": kind if kind in TEXT_HALVES else config.model_type}


def make_config(config: Mapping[str, Any]) -> Any:
    """The config of transformers; ValueError for a model that it does not know."""
    from transformers import CONFIG_MAPPING  # takes seconds, which recipes without such an encoder need not

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"a model of the type {kind!r} is none that transformers here knows")
    return CONFIG_MAPPING[kind].from_dict({name: value for name, value in config.items() if name != "model_type"})


def half_of(config: Mapping[str, Any]) -> Any:
    """The config of transformers of the text half; of a model of text alone its own."""
    whole = make_config(config)
    return getattr(whole, "text_config", None) or whole


def sizes_of(config: Mapping[str, Any]) -> TextModelSizes:
    """Sizes by the config that `read_text_config` gives."""
    text = half_of(plain_kind(config))
    learned = {"clip_text_model", "siglip_text_model", "bert", "roberta", "gpt2", "opt", "xlm-roberta", "mpnet"}
    positions = getattr(text, "max_position_embeddings", None) if text.model_type in learned else None
    pooled = (
        getattr(text, "projection_dim", text.hidden_size) if config["model_type"] in PROJECTED else text.hidden_size
    )
    return TextModelSizes(text.hidden_size, text.num_hidden_layers, pooled, positions)


def plain_kind(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of a half that is of a whole model's kind under its own kind."""
    own = {"clip": "clip_text_model", "siglip": "siglip_text_model"}
    return {**config, "model_type": own.get(config["model_type"], config["model_type"])}


def build_model(config: Mapping[str, Any], pooled: bool) -> nn.Module:
    """The text half with new weights; without `pooled` it has no layer that only the model's own vector needs."""
    import transformers

    text = half_of(plain_kind(config))
    name = TEXT_HALVES.get(config["model_type"])
    model = transformers.AutoModel.from_config(text) if name is None else getattr(transformers, name)(text)
    return trimmed(model, pooled)


def load_model(folder: Path, pooled: bool) -> nn.Module:
    """The text half in float32 with the weights of a folder, in evaluation mode.

    ValueError where weights are missing, or are not in safetensors.
    """
    import transformers

    config = read_text_config(folder)
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no weights as safetensors, and pickles are not read; get them as safetensors")
    build_on_meta(lambda: build_model(config, pooled), read_stored(folder))
    name = TEXT_HALVES.get(config["model_type"])
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
    if name is not None:
        options["config"] = half_of(plain_kind(config))
    cls = transformers.AutoModel if name is None else getattr(transformers, name)
    try:
        model, report = cls.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:160]}") from None
    half = trimmed(model, pooled)
    names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    needed = {names[id(tensor)] for tensor in half.state_dict(keep_vars=True).values() if id(tensor) in names}
    if missing := sorted(needed & set(report["missing_keys"])):
        raise ValueError(f"{folder} lacks {missing[0]} of a {type(half).__name__}; get it again")
    return half.requires_grad_(False).eval()


def trimmed(model: nn.Module, pooled: bool) -> nn.Module:
    """The part of a model that reads text, in which no weight stands twice."""
    if model.config.is_encoder_decoder or type(model).__name__.endswith("EncoderModel"):
        model = model.get_encoder()  # whose embedding is also the model's own
    elif hasattr(model, "language_model"):
        model = model.language_model
    if not pooled and getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def states_of(model: nn.Module, ids: Tensor, mask: Tensor | None, layers: Sequence[int], depth: int) -> Any:
    """The output of a model of ids [B, T]: hidden states [B, T, dim] of `layers`, 0 for what the first one reads and
    `depth` for the last, after the last norm; and the output itself."""
    padded = mask is not None and model.config.model_type in PLACED
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if padded else {}
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, return_dict=True, **positions)
    states = [output.last_hidden_state if layer == depth else output.hidden_states[layer] for layer in layers]
    return states, output
