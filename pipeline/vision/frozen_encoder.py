"""Frozen networks as the first part of a tokenizer: built from plain values, filled once, and saved with the rest."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.components import Arguments
from pipeline.nn.convolution_stages import WIDTH, ConvolutionStages, MapSizes, stage_channels, stem_and_stages
from pipeline.nn.entry_points import EntryPoints
from pipeline.nn.image_size import divide, sides_of
from pipeline.ranges import Colours, ColourScales, Count, ImageSize, Layers, RangedArguments
from pipeline.vision.backbone import (
    FAMILIES,
    GENERAL,
    IMAGENET,
    PICKLE,
    Backbone,
    difference,
    image_half,
    load_model,
    new_model,
    read_config,
    read_kind,
)
from pipeline.vision.named_model import NamedModel
from pipeline.vision.weights import OF_A_FOLDER, locate_model, require_model

Norm = Literal["plain", "own"]

EPSILON = 1e-6
SIZES = ("model_type", "hidden_size", "num_hidden_layers", "patch_size")  # what a recipe is checked by
RANDOM, SAVED = "random", "saved"  # starts that read no weights
BLOCK = re.compile(r"(?:^|\.)layers?\.(\d+)\.")  # in a parameter's name
LAST_NORMS = ("layernorm.", "norm.", "post_layernorm.")  # of DINOv2; DINOv3; CLIP and SigLIP
OF_IMAGES = ("head.", "pooler.", "embeddings.mask_token")  # what makes a feature of a whole image, or hides patches


class FrozenEncoder(RangedArguments, EntryPoints, ABC):
    """Images [B, C, H, W] in [-1, 1], as `as_rgb` takes them, to the maps `taps` of a network that nothing trains.

    It stays in evaluation mode and has no gradients. `norm` says how each map is normalised: "plain" gives every
    position mean 0 and variance 1 over its channels, which for a transformer's last layer is the model's own norm
    without its scale and shift (RAE, arXiv:2510.11690); "own" leaves them as the model gives them.
    """

    entry_points = ("maps", "normed_maps", "tokens", "last_tokens")
    taps: list[int]
    norm: Norm

    @classmethod
    @abstractmethod
    def layout(cls, arguments: Arguments) -> MapSizes:
        """Of the tapped maps, known without building; ValueError where the arguments do not fit together."""

    @abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """The tapped maps [B, C, h, w] as the model gives them."""

    @property
    @abstractmethod
    def saved_arguments(self) -> dict[str, Any]:
        """Arguments that differ from those that it was built with, once it has its weights."""

    def train(self, mode: bool = True) -> "FrozenEncoder":
        return super().train(False)

    def last_tokens(self, images: Tensor) -> Tensor:
        """The last tapped map as the model gives it, as tokens [B, M, C], after a class token where it has one."""
        return self.maps(images)[-1].flatten(2).mT

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """The last tapped map as tokens [B, M, C], row by row, after a class token where the model has one."""
        tokens = self.last_tokens(images)
        if self.norm == "plain":
            tokens = F.layer_norm(tokens.float(), tokens.shape[2:], eps=EPSILON)
        return tokens.to(images.dtype)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        return self.normed_maps(images)

    def normed_maps(self, images: Tensor) -> list[Tensor]:
        """As `forward`, with gradients, where a tokenizer trains what the network begins as."""
        maps = self.maps(images)
        if self.norm == "plain":
            maps = [F.layer_norm(m.float().movedim(1, -1), m.shape[1:2], eps=EPSILON).movedim(-1, 1) for m in maps]
        return [m.to(images.dtype) for m in maps]

    @abstractmethod
    def unread_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters on which the tapped maps do not depend."""


class StandIn(FrozenEncoder):
    """The trunk of a small classifier that the training stage makes of the recipe's own images.

    Taps are 0 for the stem's map, which is fine, to -1 for the coarsest. `source` is what a saved folder keeps, the
    classifier's name; a recipe leaves it out.
    """

    def __init__(self, image_size: ImageSize, taps: Layers = [-1], norm: Norm = "plain", source: str | None = None):  # noqa: B006
        super().__init__()
        self.taps, self.norm, self.source = taps, norm, source
        self.trunk = ConvolutionStages(**stem_and_stages(image_size))

    @classmethod
    def layout(cls, arguments: Arguments) -> MapSizes:
        image_size = arguments.image_size
        sizes = stem_and_stages(image_size)
        count = sizes["stages"] + 1
        coarsest = sizes["stride"] * 2 ** sizes["stages"]
        divide(image_size, coarsest, f"{coarsest}, the stand-in's stride")
        grids = [tuple(side // sizes["stride"] // 2**i for side in sides_of(image_size)) for i in range(count)]
        return [(stage_channels(WIDTH, count - 1)[i], grids[i]) for i in check_taps(arguments.taps, count)]

    def maps(self, images: Tensor) -> list[Tensor]:
        maps = self.trunk.maps(images.to(self.trunk.stem[0].weight.dtype))
        return [maps[tap] for tap in self.taps]

    def unread_parameters(self) -> Iterator[nn.Parameter]:
        count = len(self.trunk.blocks) + 1
        return self.trunk.blocks[max(tap % count for tap in self.taps) :].parameters()

    def fill(self, classifier: nn.Module) -> None:
        """Take the weights of a trained classifier of the same sizes."""
        trained = classifier.state_dict()
        self.trunk.load_state_dict({name: trained[name] for name in self.trunk.state_dict()})
        self.source = classifier.name

    @property
    def saved_arguments(self) -> dict[str, Any]:
        return {} if self.source is None else {"source": self.source}


class VisionTransformer(Backbone, FrozenEncoder):
    """The image half of one of transformers' vision models with patches: DINOv2, DINOv3, SigLIP, CLIP, MAE, ViT.

    `start` is the folder or hub id of its weights, or their name in `pipeline.vision.weights`, read when a tokenizer is
    built anew; "random" has none. `model` are values of its config.json, which must be those of `start`; of a hub id
    model_type, hidden_size, num_hidden_layers and patch_size must be given, so that a recipe is checked without
    network. Taps count layers: 0 is what the first block reads, k the output of block k, and -1, the last, passes
    through the model's last norm too.

    `image_patch` pixels of an image, a side, become one patch: images are resampled to that by `resize`, without
    antialiasing (RAE's is bicubic, VFM-VAE's bilinear), and normalised by the colours' `mean` and `std`. Pixels below
    and to the right of the last whole patch are `refused`, or `cut` off. `source` is what a saved folder keeps of where
    its weights came from; a recipe leaves it out.
    """

    def __init__(
        self,
        image_size: ImageSize,
        start: str,
        model: dict[str, Any] = {},  # noqa: B006
        image_patch: Count = 16,
        taps: Layers = [-1],  # noqa: B006
        norm: Norm = "plain",
        resize: Literal["bicubic", "bilinear"] = "bicubic",
        mean: Colours = list(IMAGENET[0]),  # noqa: B006
        std: ColourScales = list(IMAGENET[1]),  # noqa: B006
        source: str | None = None,
        rest: Literal["refused", "cut"] = "refused",
    ):
        config = known_config(start, model)
        on_meta = torch.empty(0).device.type == "meta"
        reads = start not in (RANDOM, SAVED) and not on_meta
        super().__init__(load_start(start, config) if reads else new_model(config), mean, std, antialias=False)
        self.taps, self.norm = [tap % (config["num_hidden_layers"] + 1) for tap in taps], norm
        self.filter = resize
        self.image_patch, self.source = image_patch, start if reads else source
        self.requires_grad_(False)

    @classmethod
    def layout(cls, arguments: Arguments) -> MapSizes:
        image_size, start, image_patch = arguments.image_size, arguments.start, arguments.image_patch
        config = known_config(start, arguments.model)
        for name in SIZES:
            if name not in config:
                raise ValueError(f"state {name} of {start} under model, so that it is known without its weights")
        whole = image_size
        if arguments.rest == "cut":
            whole = [side // image_patch * image_patch for side in sides_of(image_size)]
        grid = divide(whole, image_patch, f"image_patch, {image_patch}; change one")
        check_taps(arguments.taps, config["num_hidden_layers"] + 1)
        return [(config["hidden_size"], grid)] * len(arguments.taps)

    def maps(self, images: Tensor) -> list[Tensor]:
        pixels = self.pixels(images)
        layers = self.layers_of(pixels, self.taps, self.normed_layer)
        return [self.as_map(self.patch_tokens(tokens, pixels), pixels) for tokens in layers]

    def last_tokens(self, images: Tensor) -> Tensor:
        pixels = self.pixels(images)
        (tokens,) = self.layers_of(pixels, self.taps[-1:], self.normed_layer)
        patches = self.patch_tokens(tokens, pixels)
        return patches if tokens.shape[1] == patches.shape[1] else torch.cat([tokens[:, :1], patches], dim=1)

    def pixels(self, images: Tensor) -> Tensor:
        """Images as the model reads them."""
        rows, columns = (side // self.image_patch for side in images.shape[2:])
        patch, whole = (
            self.model.config.patch_size,
            images[:, :, : rows * self.image_patch, : columns * self.image_patch],
        )
        return self.normalise(whole, [rows * patch, columns * patch])

    def layers_of(self, pixels: Tensor, layers: Sequence[int], normed: int | None) -> list[Tensor]:
        """As in the base; CLIP's last norm, which it gives the class token alone, is given all tokens."""
        tokens = super().layers_of(pixels, layers, normed)
        if self.model.config.model_type != "clip_vision_model":
            return tokens
        norm = self.model.post_layernorm
        return [norm(h.to(norm.weight.dtype)).float() if k == normed else h for k, h in zip(layers, tokens)]

    def unread_parameters(self) -> Iterator[nn.Parameter]:
        deepest, last = max(self.taps), self.model.config.num_hidden_layers
        for name, parameter in self.model.named_parameters():
            block = BLOCK.search(name)
            above = name.startswith(LAST_NORMS) and (deepest < last or self.norm != "own")
            if above or name.startswith(OF_IMAGES) or block and int(block[1]) >= deepest:
                yield parameter

    @property
    def normed_layer(self) -> int | None:
        """The layer that passes through the model's last norm."""
        return self.model.config.num_hidden_layers if self.norm == "own" else None

    @property
    def saved_arguments(self) -> dict[str, Any]:
        if self.source is None:
            return {}
        return {"start": SAVED, "source": self.source, "model": settings_of(self.model.config)}


def needs_stand_in(frozen_encoder: Mapping[str, Any]) -> bool:
    """Whether the encoder of this node is to be a classifier of the recipe's own images, which it does not have yet."""
    return frozen_encoder["kind"] == "stand_in" and frozen_encoder.get("source") is None


ENCODERS = {"vision_transformer": VisionTransformer, "stand_in": StandIn}


class OnFrozenEncoder:
    """A tokenizer with a `FrozenEncoder`, chosen by `frozen_encoder` of its config; no phase trains that.

    One that calls it otherwise names the argument by `encoder_argument`.
    """

    encoder: FrozenEncoder
    encoder_argument: str = "frozen_encoder"

    @classmethod
    def named_models(cls, arguments: Arguments) -> dict[str, NamedModel]:
        """As that of every tokenizer."""
        start = arguments[cls.encoder_argument].get("start", RANDOM)
        return {} if start in (RANDOM, SAVED) else {f"{cls.encoder_argument}.start": NamedModel(start, hub=True)}

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        return self.encoder.parameters()

    def load_stand_in(self, classifier: nn.Module) -> None:
        """Take the weights of a classifier whose task is its `name`; a training begins with that."""
        self.encoder.fill(classifier)
        self.keep_source()

    def keep_source(self) -> None:
        """The config says where the frozen weights are from, and with which arguments it is built without that."""
        node = dict(self.config[self.encoder_argument]) | self.encoder.saved_arguments
        self.register_to_config(**{self.encoder_argument: node})


def check_taps(taps: list[int], count: int) -> list[int]:
    """`taps` counted from 0; ValueError where there are not so many maps."""
    if not taps or any(not -count <= tap < count for tap in taps):
        raise ValueError(f"taps are {taps}; name one or more of the maps 0 to {count - 1}, or -1 for the last")
    return [tap % count for tap in taps]


def known_config(start: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the config of `start` without network; ValueError where a folder's differs from `arguments`."""
    folder = None if start in (RANDOM, SAVED) else locate_model(start, {}, "start")
    return dict(arguments) if folder is None else merge_configs(config_of_whole(folder), arguments, start)


def merge_configs(config: dict[str, Any], arguments: Mapping[str, Any], start: str) -> dict[str, Any]:
    """Both configs as one; ValueError where they differ in a setting."""
    if name := difference(config, arguments):
        raise ValueError(f"{start} has {name} {config[name]}, the recipe {arguments[name]}; correct it under model")
    return dict(arguments) | config


def config_of_whole(folder: Path) -> dict[str, Any]:
    """The config of a model whose weights are there, too; ValueError where they are not."""
    if not (folder / OF_A_FOLDER[1]).is_file() and not has_pickled_clip(folder):
        raise ValueError(f"{folder} holds no {OF_A_FOLDER[1]}; name one of transformers' vision models")
    return read_config(folder)


def has_pickled_clip(folder: Path) -> bool:
    """Whether the weights are a pickle of CLIP's, of which the hub has some sizes as nothing else."""
    return (folder / PICKLE).is_file() and not (folder / OF_A_FOLDER[1]).is_file() and read_kind(folder) == "clip"


def load_start(start: str, config: Mapping[str, Any]) -> nn.Module:
    """The image half with the weights of `start`; ValueError where they cannot be had or are not all there."""
    folder = require_model(start, {}, "start")
    model = new_model(merge_configs(config_of_whole(folder), config, start))
    family = FAMILIES["clip"] if has_pickled_clip(folder) else GENERAL
    model.load_state_dict(image_half(load_model(folder, family)).state_dict())
    return model


def settings_of(config: Any) -> dict[str, Any]:
    """The sizes of a config and what else of it differs from its class's, as JSON values."""
    differing = {name: value for name, value in config.to_diff_dict().items() if not name.startswith("_")}
    return differing | {name: getattr(config, name) for name in SIZES}
