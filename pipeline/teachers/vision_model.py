"""A published vision model, by transformers, as a source of features and of tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.files.writing import read_json
from pipeline.nn.image_channels import as_rgb
from pipeline.teachers.base import Resize
from pipeline.vision.backbone import (
    FAMILIES,
    GENERAL,
    Backbone,
    check_layer,
    load_model,
    name_of,
    new_model,
    read_kind,
)

Size = int | Literal["grid"] | None
Readout = Literal["normed", "patches", "class_token", "projected"]
PATCH = 16  # pixels of an image that become a patch where the size is "grid"


class VisionModel(Backbone):
    """Features of images [B, C, H, W] in [-1, 1], as `as_rgb` takes them, by a vision model, in float32.

    DINOv2 (Oquab et al., arXiv:2304.07193), CLIP (Radford et al., arXiv:2103.00020), SigLIP (Zhai et al.,
    arXiv:2303.15343; also the second, where its images have one size), or another that transformers' AutoModel reads.

    Images are resampled (bicubic, with antialiasing; with `resize: bicubic` without; with `area` by the mean over areas
    where they are larger, else bicubic without antialiasing; with `bilinear` by that, without) to `size` pixels per
    side, None for the model's own; "grid" makes 16 of their pixels a patch, so that a tokenizer of stride 16 and the
    model see one grid (DINOv2's patches are of 14: 256 becomes 224). Then they are normalised by the colours' `mean`
    and `std` [3] that the model has learned from.

    `layers` are those that `maps` are of, counted in blocks: 0 is what the first one reads, k the output of block k,
    and the last, its number or -1, is after the model's last norm. ValueError where there is no such layer. With a
    `readout` other than `normed` maps have no last norm; with `class_token` that token is added to every patch's, where
    there is one, as the projected critic reads them (Sauer et al., arXiv:2301.09515). With `projected`, of CLIP alone,
    the last layer's go through the last norm and the projection that make its embedding of the class token.
    """

    def __init__(
        self,
        kind: str,
        model: nn.Module,
        mean: list[float],
        std: list[float],
        size: Size = None,
        layers: Sequence[int] = (-1,),
        readout: Readout = "normed",
        resize: Resize = "antialiased",
    ):
        super().__init__(model, mean, std, antialias=resize == "antialiased")
        self.resize = resize
        self.kind, self.family = kind, FAMILIES.get(kind, GENERAL)
        trained = model.config.image_size if isinstance(model.config.image_size, int) else model.config.image_size[0]
        self.size, self.readout = trained if size is None else size, readout
        self.depth = getattr(model.config, "num_hidden_layers", None)
        self.layers = [check_layer(layer, self.depth, kind) for layer in layers]
        if readout == "projected" and (kind != "clip" or self.layers != [self.depth]):
            raise ValueError(f"tokens are projected after the last layer of a CLIP alone, not those of a {kind}")

    @classmethod
    def load(
        cls,
        folder: Path,
        kind: str | None = None,
        size: Size = None,
        layers: Sequence[int] = (-1,),
        affine: bool = True,
        readout: Readout = "normed",
        resize: Resize = "antialiased",
    ) -> "VisionModel":
        """From a folder with config.json and model.safetensors, as facebook/dinov2-base; frozen, in evaluation mode.

        Colours are as preprocessor_config.json says where it is there. Without `affine` the last norm has no scale and
        shift, as in RAE (arXiv:2510.11690). Raises ValueError where the folder holds no vision model, another than
        `kind`, or not all of its weights; a pickle is read for CLIP and DINO alone, and runs nothing.
        """
        kind = read_kind(folder, kind)
        family = FAMILIES.get(kind, GENERAL)
        model = load_model(folder, family)
        file = folder / "preprocessor_config.json"
        preprocessor = read_json(file) if file.is_file() else {}
        mean, std = (preprocessor.get(name, usual) for name, usual in zip(("image_mean", "image_std"), family.colours))
        if not affine:
            remove_scale_and_shift(last_norm(model, kind))
        return cls(kind, model, mean, std, size, layers, readout, resize).requires_grad_(False).eval()

    @classmethod
    def without_weights(cls, config: Mapping[str, Any], kind: str | None = None, **options: Any) -> "VisionModel":
        """One of the sizes in `config`, a config.json, whose weights are random; `options` are of the constructor."""
        kind = kind or config["model_type"]
        colours = FAMILIES.get(kind, GENERAL).colours
        return cls(kind, new_model(config), *colours, **options).requires_grad_(False).eval()

    @property
    def name(self) -> str:
        """What numbers on it are called after: dinov2_b, clip, dinov3_vit."""
        return name_of(self.kind, self.width)

    @property
    def dim(self) -> int:
        """Channels of `features`."""
        return self.model.config.projection_dim if self.family.output == "image_embeds" else self.width

    @property
    def width(self) -> int:
        """Channels of a token."""
        config = self.model.config
        return config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each of `maps`."""
        return (self.dim if self.readout == "projected" else self.width,) * len(self.layers)

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, width, h, w], the patches' tokens at their positions, for each of `layers`; without any other token."""
        pixels = self.pixels(images)
        normed = self.last if self.readout == "normed" or self.depth is None else None
        layers = self.layers_of(pixels, self.layers, normed)
        return [self.as_map(self._read(tokens, pixels), pixels) for tokens in layers]

    def class_token_and_map(self, images: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """The class token [B, width] of a layer, and its map as that of `maps`, in one pass; ValueError without one."""
        pixels = self.pixels(images)
        (tokens,) = self.layers_of(pixels, [self.layers[index]], self.last)
        patches = self.patch_tokens(tokens, pixels)
        if tokens.shape[1] == patches.shape[1]:
            raise ValueError(f"a {self.kind} has no class token; name another teacher, or set class_token=false")
        return tokens[:, 0], self.as_map(patches, pixels)

    def features(self, images: Tensor) -> Tensor:
        """[B, dim]: DINOv2's class token after the last norm, CLIP's and SigLIP's image embedding as the model gives it
        (not of unit length), the mean over tokens of any other."""
        if self.family is GENERAL:
            return self.mean_token(images)
        output = self.outputs(self.pixels(images))[self.family.output].float()
        return output[:, 0] if output.ndim == 3 else output

    def tokens(self, images: Tensor, layer: int | None = None) -> Tensor:
        """[B, P, width], the tokens of the P patches, row by row, as `all_tokens` has them."""
        pixels = self.pixels(images)
        return self.patch_tokens(self._hidden(pixels, layer), pixels)

    def all_tokens(self, images: Tensor, layer: int | None = None) -> Tensor:
        """[B, N, width], the class token and registers first, where there are any.

        They are the model's last hidden state: after the last norm, which CLIP gives its class token alone; or the
        output of `layer`, 0 for what the first one reads and -1 for the last, before the norm.
        """
        return self._hidden(self.pixels(images), layer)

    def mean_token(self, images: Tensor) -> Tensor:
        """[B, width], the mean over `all_tokens`."""
        return self.all_tokens(images).mean(dim=1)

    def pixels(self, images: Tensor) -> Tensor:
        """Images as the model reads them."""
        images = as_rgb(images)
        sides = [self.size] * 2
        if self.size == "grid":
            sides = [self.model.config.patch_size * max(1, round(side / PATCH)) for side in images.shape[2:]]
        mode = {"area": "area", "bilinear": "bilinear"}.get(self.resize)
        smaller = any(old < new for old, new in zip(images.shape[2:], sides))
        if mode is not None and list(images.shape[2:]) != list(sides) and not (mode == "area" and smaller):
            images = F.interpolate(images.float(), list(sides), mode=mode)
        return self.normalise(images, sides)

    @property
    def last(self) -> int:
        """Number of the last layer; -1 of a model that is no transformer and has this one alone."""
        return -1 if self.depth is None else self.depth

    def _read(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """What `maps` has of tokens [B, N, width]: [B, P, width]."""
        patches = self.patch_tokens(tokens, pixels)
        if self.readout == "projected":
            return self.model.visual_projection(self.model.vision_model.post_layernorm(patches))
        added = self.readout == "class_token" and tokens.shape[1] > patches.shape[1]
        return patches + tokens[:, :1] if added else patches

    def _hidden(self, pixels: Tensor, layer: int | None) -> Tensor:
        """All tokens of a layer, None for the last one after the norm."""
        layer, normed = (self.last, self.last) if layer is None else (layer, None)
        return self.layers_of(pixels, [layer], normed)[0]


def approximate_gelu(model: nn.Module) -> None:
    """Replace every exact GELU of a model of transformers by its approximation with tanh."""
    from transformers.activations import GELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, GELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def last_norm(model: nn.Module, kind: str) -> nn.Module:
    """The norm after the last block; ValueError where there is none."""
    for name in ("layernorm", "norm", "post_layernorm"):  # DINOv2, MAE; DINOv3; SigLIP
        if isinstance(norm := getattr(model, name, None), nn.LayerNorm) and kind != "clip":
            return norm
    raise ValueError(f"the tokens of a {kind} pass through no last norm; leave its scale and shift (affine=true)")


@torch.no_grad()
def remove_scale_and_shift(norm: nn.LayerNorm) -> None:
    norm.weight.fill_(1), norm.bias.zero_()
