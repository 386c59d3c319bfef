"""The one wrapper of transformers' vision models: their configs, their weights, and what they make of images."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.files.writing import read_json
from pipeline.nn.image_channels import as_rgb
from pipeline.stored_weights import build_on_meta, check_numbers, read_sizes
from pipeline.vision.weights import OF_A_FOLDER

CONFIG = OF_A_FOLDER[0]
PICKLE = "pytorch_model.bin"
HALF = "_vision_model"  # how `model_type` of an image half ends
HALVES = {f"blip_2{HALF}": "Blip2VisionModel"}  # image halves that transformers' AutoModel does not make
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std of colours in [0, 1]
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Family:
    """What the models of one paper have in common."""

    architecture: str  # class of transformers
    output: str  # its field that holds the features; of a sequence, the first token's
    colours: tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, where the folder states none
    letters: Mapping[int, str] = field(default_factory=dict)  # width -> what the paper calls this size
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the class, to leave out parts that nothing reads
    pickled: bool = False  # whether pytorch_model.bin may take the place of safetensors


FAMILIES = {  # by `model_type` of config.json, of a whole model or of its image half
    "dinov2": Family("Dinov2Model", "last_hidden_state", IMAGENET, {384: "s", 768: "b", 1024: "l", 1536: "g"}),
    "clip": Family(  # the hub has openai/clip-vit-large-patch14-336 as a pickle alone; no code in one is run
        "CLIPVisionModelWithProjection", "image_embeds", CLIP, pickled=True
    ),
    "vit": Family(  # DINO of arXiv:2104.14294, of which the hub has the ViT-S/16 as a pickle alone, and others
        "ViTModel", "last_hidden_state", IMAGENET, arguments={"add_pooling_layer": False}, pickled=True
    ),
    "siglip": Family("SiglipVisionModel", "pooler_output", ((0.5,) * 3,) * 2),
}
GENERAL = Family("AutoModel", "mean", IMAGENET)  # any other: features are the mean over tokens


class Backbone(nn.Module):
    """The image half `model` of a vision model, which reads images [B, C, H, W] in [-1, 1] by `as_rgb`.

    Images are resampled by `filter`, with antialiasing or without, and normalised by the colours' `mean` and `std` [3].
    Layers are counted in blocks: 0 is what the first block reads, k the output of block k.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float], antialias: bool):
        super().__init__()
        self.model, self.antialias, self.filter = model, antialias, "bicubic"
        parameters = inspect.signature(model.forward).parameters
        # models without this argument interpolate their positions of themselves
        self.arguments = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
        self.shuffles = "noise" in parameters  # a masked autoencoder orders its tokens by a noise
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def normalise(self, images: Tensor, sides: Sequence[int]) -> Tensor:
        """Images as the model reads them, of `sides` pixels, in float32."""
        images = as_rgb(images).float()
        if list(images.shape[2:]) != list(sides):
            images = F.interpolate(images, list(sides), mode=self.filter, antialias=self.antialias)
        return ((images + 1) / 2 - self.mean) / self.std

    def leave_colours(self) -> None:
        """From now on images are read as they are, in [-1, 1], not normalised by the colours' mean and std."""
        self.mean.fill_(0.5), self.std.fill_(0.5)

    def outputs(self, pixels: Tensor, hidden_states: bool = False) -> Mapping[str, Any]:
        """The outputs of transformers' model for normalised pixels."""
        arguments = dict(self.arguments)
        if hidden_states:
            arguments["output_hidden_states"] = True
        if self.shuffles:  # an ascending noise keeps the order
            positions = torch.arange(self.patches(pixels), device=pixels.device)
            arguments["noise"] = positions.expand(len(pixels), -1)
        return self.model(pixel_values=pixels.to(next(self.model.parameters()).dtype), **arguments)

    def layers_of(self, pixels: Tensor, layers: Sequence[int], normed: int | None) -> list[Tensor]:
        """All tokens [B, N, C] of each of `layers`; that of number `normed`, if any, after the model's last norm."""
        outputs = self.outputs(pixels, any(layer != normed for layer in layers))
        return [
            as_tokens(outputs.last_hidden_state if layer == normed else outputs.hidden_states[layer])
            for layer in layers
        ]

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        patch = self.model.config.patch_size
        return pixels.shape[2] // patch, pixels.shape[3] // patch

    def patches(self, pixels: Tensor) -> int:
        rows, columns = self.grid(pixels)
        return rows * columns

    def patch_tokens(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Those of tokens [B, N, C] that are patches', [B, P, C]; the class token and registers come before them."""
        count = self.patches(pixels)
        if tokens.shape[1] < count:
            kind = self.model.config.model_type.removesuffix(HALF)
            raise ValueError(f"a {kind} merges its {count} patches into {tokens.shape[1]} tokens; name another")
        return tokens[:, -count:]

    def as_map(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Patches' tokens [B, P, C], row by row, as a map [B, C, h, w]."""
        return tokens.mT.unflatten(2, self.grid(pixels))


def as_tokens(states: Tensor) -> Tensor:
    """Tokens [B, N, C], or a map [B, C, h, w] whose positions are tokens, as [B, N, C] in float32."""
    return (states.flatten(2).mT if states.ndim == 4 else states).float()


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a vision model, or of the image half of a larger one; ValueError where there is none."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no {CONFIG}; name the folder of one of transformers' vision models")
    whole = read_json(folder / CONFIG)
    if "vision_config" not in whole:
        return whole
    return {"model_type": f"{whole['model_type']}{HALF}"} | whole["vision_config"]


def read_kind(folder: Path, kind: str | None = None) -> str:
    """`model_type` of the model in `folder`, or of the one that it is half of; ValueError unless it is `kind`."""
    stored = read_config(folder).get("model_type", "nameless").removesuffix(HALF)
    if kind not in (None, stored):
        raise ValueError(f"{folder} holds a {stored}, not a {kind}; name the folder of one")
    return stored


def read_depth(folder: Path) -> int | None:
    """Blocks of the transformer; None for a model that is none."""
    return read_config(folder).get("num_hidden_layers")


def read_width(folder: Path) -> int:
    """Channels of the last hidden state."""
    config = read_config(folder)
    return config["hidden_size"] if "hidden_size" in config else config["hidden_sizes"][-1]


def read_features(folder: Path) -> tuple[str, int]:
    """Name and channels of the features of a whole image, by the config alone."""
    kind, width = read_kind(folder), read_width(folder)
    projected = FAMILIES.get(kind, GENERAL).output == "image_embeds"
    return name_of(kind, width), read_config(folder).get("projection_dim", 512) if projected else width


def name_of(kind: str, width: int) -> str:
    """The model's name in numbers; with its size where the paper has a letter for it, or with its width."""
    letters = FAMILIES.get(kind, GENERAL).letters
    return f"{kind}_{letters.get(width, width)}" if letters else kind


def difference(config: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """The first setting that a config has otherwise than expected; one that it lacks is as its model has it."""
    return next((name for name, value in expected.items() if config.get(name, value) != value), None)


def check_layer(layer: int, count: int | None, kind: str) -> int:
    """The number of a layer of `count`, where -1 is the last; ValueError where a model has no such layer."""
    if count is None:
        if layer != -1:
            raise ValueError(f"a {kind} has no layers of tokens; leave layer at -1, its last hidden state")
        return layer
    if not -count - 1 <= layer <= count:
        raise ValueError(f"there is no layer {layer} in a {kind} of {count}; they are 0 to {count}, or -1 for the last")
    return layer % (count + 1)


def image_half(whole: nn.Module) -> nn.Module:
    return getattr(whole, "vision_model", whole)


def new_model(config: Mapping[str, Any]) -> nn.Module:
    """The image half of this config with new weights."""
    import transformers  # takes seconds, which the check of a recipe need not
    from transformers import AutoConfig, AutoModel

    rest = {name: value for name, value in config.items() if name != "model_type"}
    if config["model_type"] == "vit_mae":
        rest["mask_ratio"] = 0.0
    settings = AutoConfig.for_model(config["model_type"], **rest)
    if config["model_type"] in HALVES:
        return getattr(transformers, HALVES[config["model_type"]])(settings)
    return image_half(AutoModel.from_config(settings))


def load_model(folder: Path, family: Family = GENERAL) -> nn.Module:
    """The image half in float32 with the weights of a folder with config.json and model.safetensors.

    Raises ValueError where the folder lacks weights, or holds no vision model. A pickle is read for the families that
    have one, and runs nothing.
    """
    import transformers

    kind = read_kind(folder)
    if not (any(folder.glob("model*.safetensors")) or family.pickled and (folder / PICKLE).is_file()):
        raise ValueError(f"{folder} holds no model.safetensors, and other weights of a {kind} are not read")
    arguments = {"local_files_only": True} | family.arguments
    if family is GENERAL:
        arguments["config"] = _general_config(folder)
    check_numbers(read_config(folder))
    build_on_meta(lambda: new_model(read_config(folder)), read_sizes(folder, PICKLE))
    model, report = getattr(transformers, family.architecture).from_pretrained(
        folder,
        use_safetensors=None if family.pickled else True,
        output_loading_info=True,
        dtype=torch.float32,
        **arguments,
    )
    half = image_half(model) if family is GENERAL else model
    if not hasattr(half.config, "image_size"):
        raise ValueError(f"{folder} holds a {type(model).__name__}, which reads no images of one size; name another")
    if report["missing_keys"]:
        raise ValueError(f"{folder} lacks {sorted(report['missing_keys'])[0]} of a {kind}; fetch it again")
    return half


def _general_config(folder: Path) -> Any:
    """The config of a model of no family; ValueError where transformers does not know it."""
    from transformers import CONFIG_MAPPING, AutoConfig

    if (kind := read_kind(folder)) not in CONFIG_MAPPING:
        raise ValueError(f"{folder} holds a {kind}, which transformers here does not know")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0  # a masked autoencoder reads whole images
    return config
