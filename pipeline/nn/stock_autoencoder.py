"""Stock diffusers autoencoders of images: the class of a folder, the shape of its latents, and its weights."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin
from torch import Tensor

from pipeline.files.paths import given_path, may_be_hub_id
from pipeline.nn.image_size import ImageShape, Sides, size_text
from pipeline.stored_weights import build_on_meta, check_numbers, read_sizes

PICKLE = "diffusion_pytorch_model.bin"
UNIT_RANGE = ("AutoencoderRAE",)  # classes whose pixels are [0, 1]; all others take [-1, 1]
SCALED = ("AutoencoderRAE",)  # classes whose latents leave `encode` normalised


@dataclass(frozen=True)
class LatentShape:
    """The latents of an image."""

    dim: int  # channels
    grid: Sides  # of the map
    posterior: bool  # mean and log variance, rather than the code itself


def is_folder(path: str) -> bool:
    return given_path(path).is_dir()


def read_config(path: str, subfolder: str | None) -> dict[str, Any]:
    """The config.json of a folder or hub id, with `_class_name`; ValueError with one line when it cannot be had."""
    if not is_folder(path) and not may_be_hub_id(path):
        raise ValueError(f"{path} is neither a folder nor a hub id (owner/name)")
    try:
        config = dict(diffusers.AutoencoderKL.load_config(resolve_path(path), subfolder=subfolder))  # of any class
    except OSError as error:
        hint = "; it holds a pipeline: set subfolder, for example subfolder=vae" if is_pipeline(path) else ""
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} has no autoencoder{hint or f' ({reason})'}") from None
    if is_folder(path):
        check_size(config, given_path(path) / (subfolder or ""))
    return config


def check_size(config: dict[str, Any], folder: Path) -> None:
    """ValueError where the config asks for more than the weights in the folder hold."""
    check_numbers(config)
    stored = read_sizes(folder, PICKLE)
    if stored.elements:
        find_class(config)
        build_on_meta(lambda: build_empty(config), stored)


def resolve_path(path: str) -> str:
    """A folder with ~ resolved; a hub id as it is."""
    return str(given_path(path)) if is_folder(path) else path


def is_pipeline(path: str) -> bool:
    return (given_path(path) / "model_index.json").is_file()


def find_class(config: dict[str, Any]) -> type[ModelMixin]:
    """The diffusers class that `config` names; ValueError when it is not an autoencoder with continuous latents."""
    name = config.get("_class_name", "nothing")
    if name == "VQModel":
        raise ValueError("a VQModel's codes are ids; pretrained takes autoencoders with continuous latents")
    cls = getattr(diffusers, name, None) if "Autoencoder" in name else None
    if cls is None:
        raise ValueError(f"{name} is not an autoencoder of diffusers {diffusers.__version__}")
    return cls


def build_empty(config: dict[str, Any]) -> ModelMixin:
    """The autoencoder without its weights."""
    cls = find_class(config)
    known = inspect.signature(cls.__init__).parameters  # a class may state more in its config than it takes
    return cls.from_config({name: config[name] for name in known if name in config}).requires_grad_(False).eval()


def load(config: dict[str, Any], path: str, subfolder: str | None) -> ModelMixin:
    """The autoencoder with the weights at `path`, in float32; ValueError when some are missing."""
    loaded, info = find_class(config).from_pretrained(resolve_path(path), subfolder=subfolder, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{path} lacks weights of its {type(loaded).__name__}: {', '.join(info['missing_keys'][:3])}")
    return loaded.requires_grad_(False).eval()


def probe(config: dict[str, Any], image: ImageShape) -> LatentShape:
    """The latents that the autoencoder of `config` has for images of a shape, found on the meta device.

    Raises ValueError when it does not turn such images into maps of their aspect ratio and back into the same shape.
    """
    return _probe(json.dumps(config, sort_keys=True), tuple(image))


@cache  # it builds a model, and a recipe's check calls it more than once
@torch.no_grad()
def _probe(text: str, shape: ImageShape) -> LatentShape:
    config, (channels, height, width) = json.loads(text), shape
    size = size_text((height, width))
    with torch.device("meta"):
        model, image = build_empty(config), torch.zeros(1, *shape)
    name = type(model).__name__
    try:
        latents, posterior = encode(model, image)
        dim = latents.shape[1] // (2 if posterior else 1)
        back = model.decode(latents[:, :dim], return_dict=False)[0]
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"this {name} does not take images of {channels} channels and {size} pixels ({reason})"
        ) from None
    grid = tuple(latents.shape[2:])
    if latents.dim() != 4 or height % grid[0] or (width * grid[0], width % grid[1]) != (height * grid[1], 0):
        raise ValueError(f"this {name} makes latents {list(latents.shape[1:])}, not a map, of {size} pixels")
    if back.shape[2:] != image.shape[2:]:
        raise ValueError(
            f"this {name} makes images of {size_text(back.shape[2:])} pixels of {size}; set data.size to that"
        )
    if back.shape[1] != channels:
        raise ValueError(f"this {name} makes images of {back.shape[1]} channels; set data.channels to them")
    return LatentShape(dim, grid, posterior)


def statistics(config: dict[str, Any], dim: int) -> tuple[Tensor, Tensor]:
    """Mean and std [dim] of the latents by what a stock config states of them; 0 and 1 where it states nothing.

    Pipelines of diffusers give a generator (z - shift_factor) scaling_factor, or (z - latents_mean) scaling_factor /
    latents_std of the classes that have these. AutoencoderRAE brings its latents to that scale itself.
    """
    known = {} if config["_class_name"] in SCALED else stated_statistics(config)
    scale = torch.tensor(float(known.get("scaling_factor") or 1))
    mean, std = known.get("latents_mean"), known.get("latents_std")
    if mean is None or std is None:
        return torch.full((dim,), float(known.get("shift_factor") or 0)), (1 / scale).expand(dim)
    return per_channel(mean, dim), per_channel(std, dim) / scale


def stated_statistics(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of `statistics` as the class has them where the config leaves them out."""
    parameters = inspect.signature(find_class(config).__init__).parameters
    names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    return {name: config.get(name, parameters[name].default) for name in names if name in parameters}


def per_channel(values: Sequence[float] | float, dim: int) -> Tensor:
    """[dim] of a number or of one per channel; ValueError for another count."""
    found = torch.as_tensor(values, dtype=torch.float32).flatten()
    if len(found) not in (1, dim):
        raise ValueError(f"the autoencoder states statistics of {len(found)} channels, its latents have {dim}")
    return found.expand(dim)


def encode(model: ModelMixin, images: Tensor) -> tuple[Tensor, bool]:
    """What `encode` gives, unscaled: (mean and log variance [B, 2C, h, w], True) or (the code [B, C, h, w], False)."""
    if type(model).__name__ in UNIT_RANGE:
        images = (images + 1) / 2
    (output,) = model.encode(images, return_dict=False)
    return (output.parameters, True) if hasattr(output, "parameters") else (output, False)


def decode(model: ModelMixin, maps: Tensor) -> Tensor:
    """Images in [-1, 1] of unscaled latents [B, C, h, w]."""
    images = model.decode(maps, return_dict=False)[0]
    return images * 2 - 1 if type(model).__name__ in UNIT_RANGE else images
