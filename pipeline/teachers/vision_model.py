"""The image half of a published vision model, by transformers, as a source of features and of tokens."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.vision.config import read_config, read_kind, read_width

Size = int | Literal["grid"] | None
PLACE = 16  # pixels of an image that become a patch where the size is "grid"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std of colours in [0, 1]
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Family:
    """What the models of one paper have in common."""

    architecture: str  # class of transformers
    output: str  # its field that holds the features; of a sequence, the first token's
    colours: tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, where the folder states none
    letters: Mapping[int, str] = field(default_factory=dict)  # width -> what the paper calls this size
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the class, where it would want what nobody reads
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


class VisionModel(nn.Module):
    """What a vision model sees of images [B, 3, H, W] in [-1, 1], in float32.

    DINOv2 (Oquab et al., arXiv:2304.07193), CLIP (Radford et al., arXiv:2103.00020), SigLIP (Zhai et al.,
    arXiv:2303.15343; also the second, where its images have one size), or another that transformers' AutoModel reads.

    Images are resampled (bicubic, with antialiasing) to `size` pixels a side, None for the model's own; "grid" makes 16
    of their pixels a patch, so that a tokenizer of stride 16 and the model see one grid (DINOv2's patches are of 14:
    256 becomes 224). Then they are given the colours' `mean` and `std` [3] that the model has learned from.

    `layers` are those that `maps` are of, counted in blocks: 0 is what the first one reads, k what block k leaves, and
    the last, its number or -1, is after the model's last norm. ValueError where there is no such layer. With `readout`
    maps have the class token added to every patch's, where there is one, and no last norm: so a projected critic reads
    them (Sauer et al., arXiv:2301.09515).
    """

    def __init__(
        self,
        kind: str,
        model: nn.Module,
        mean: list[float],
        std: list[float],
        size: Size = None,
        layers: Sequence[int] = (-1,),
        readout: bool = False,
    ):
        super().__init__()
        self.kind, self.model, self.family = kind, model, FAMILIES.get(kind, GENERAL)
        own = model.config.image_size if isinstance(model.config.image_size, int) else model.config.image_size[0]
        self.size, self.readout = own if size is None else size, readout
        taken = inspect.signature(model.forward).parameters
        resampled = self.size != own and "interpolate_pos_encoding" in taken  # others do so of themselves
        self.arguments = {"interpolate_pos_encoding": True} if resampled else {}
        self.depth = getattr(model.config, "num_hidden_layers", None)
        self.layers = [check_layer(layer, self.depth, kind) for layer in layers]
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    @classmethod
    def load(
        cls,
        folder: Path,
        kind: str | None = None,
        size: Size = None,
        layers: Sequence[int] = (-1,),
        affine: bool = True,
        readout: bool = False,
    ) -> "VisionModel":
        """From a folder with config.json and model.safetensors, as facebook/dinov2-base; frozen, in evaluation mode.

        Colours are as preprocessor_config.json says where it is there. Without `affine` the last norm has no scale and
        shift, as in RAE (arXiv:2510.11690). Raises ValueError where the folder holds no vision model, another than
        `kind`, or not all of its weights; a pickle is read for CLIP and DINO alone, and runs nothing.
        """
        kind = read_kind(folder, kind)
        family = FAMILIES.get(kind, GENERAL)
        if not (any(folder.glob("model*.safetensors")) or family.pickled and (folder / "pytorch_model.bin").is_file()):
            raise ValueError(f"{folder} holds no model.safetensors, and other weights of a {kind} are not read")
        model, missing = _model(folder, family)
        if missing:
            raise ValueError(f"{folder} lacks {missing[0]} of a {kind}; fetch it again")
        file = folder / "preprocessor_config.json"
        stated = json.loads(file.read_text()) if file.is_file() else {}
        mean, std = (stated.get(name, own) for name, own in zip(("image_mean", "image_std"), family.colours))
        if not affine:
            plain(last_norm(model, kind))
        return cls(kind, model, mean, std, size, layers, readout).requires_grad_(False).eval()

    @property
    def name(self) -> str:
        """What numbers on it are called after: dinov2_b, clip, dinov3_vit."""
        return called(self.kind, self.width)

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
        return (self.width,) * len(self.layers)

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, width, h, w], the patches' tokens in their places, for each of `layers`; without any other token."""
        last = -1 if self.depth is None else self.depth + self.readout  # with readout no layer is
        pixels = self.pixels(images)
        seen = self.see(pixels, output_hidden_states=any(layer != last for layer in self.layers))
        found = [seen.last_hidden_state if layer == last else seen.hidden_states[layer] for layer in self.layers]
        rows = pixels.shape[2] // self.model.config.patch_size
        return [self._shown(as_tokens(each), pixels).mT.unflatten(2, (rows, -1)) for each in found]

    def features(self, images: Tensor) -> Tensor:
        """[B, dim]: DINOv2's class token after the last norm, CLIP's and SigLIP's image embedding as the model gives it
        (not of unit length), the mean over tokens of any other."""
        if self.family is GENERAL:
            return self.mean_token(images)
        found = self.see(self.pixels(images))[self.family.output].float()
        return found[:, 0] if found.ndim == 3 else found

    def tokens(self, images: Tensor, layer: int | None = None) -> Tensor:
        """[B, P, width], the tokens of the P patches, row by row, as `all_tokens` has them."""
        pixels = self.pixels(images)
        return self._of_patches(self._hidden(pixels, layer), pixels)

    def all_tokens(self, images: Tensor, layer: int | None = None) -> Tensor:
        """[B, N, width], the class token and registers first, where there are any.

        They are the model's last hidden state: after the last norm, which CLIP gives its class token alone; or what
        `layer` leaves, 0 for what the first one reads and -1 for the last, before the norm.
        """
        return self._hidden(self.pixels(images), layer)

    def mean_token(self, images: Tensor) -> Tensor:
        """[B, width], the mean over `all_tokens`."""
        return self.all_tokens(images).mean(dim=1)

    def pixels(self, images: Tensor) -> Tensor:
        """Images as the model reads them."""
        sides = [self.size] * 2
        if self.size == "grid":
            sides = [self.model.config.patch_size * max(1, round(side / PLACE)) for side in images.shape[2:]]
        images = images.float()
        if list(images.shape[2:]) != sides:
            images = F.interpolate(images, sides, mode="bicubic", antialias=True)
        return ((images + 1) / 2 - self.mean) / self.std

    def see(self, pixels: Tensor, **arguments: Any) -> Mapping[str, Any]:
        """What transformers' model gives."""
        if self.kind == "vit_mae":  # it shuffles its tokens by a noise; an ascending one leaves them in their places
            places = torch.arange(self._patches(pixels), device=pixels.device)
            arguments["noise"] = places.expand(len(pixels), -1)
        return self.model(pixel_values=pixels, **self.arguments, **arguments)

    def _patches(self, pixels: Tensor) -> int:
        patch = self.model.config.patch_size
        return (pixels.shape[2] // patch) * (pixels.shape[3] // patch)

    def _of_patches(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """The patches' of tokens [B, N, width], of which the class token and registers are the first."""
        count = self._patches(pixels)
        if tokens.shape[1] < count:
            raise ValueError(f"a {self.kind} merges its {count} patches into {tokens.shape[1]} tokens; name another")
        return tokens[:, -count:]

    def _shown(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """What `maps` shows of tokens [B, N, width]: [B, P, width]."""
        patches = self._of_patches(tokens, pixels)
        return patches + tokens[:, :1] if self.readout and tokens.shape[1] > patches.shape[1] else patches

    def _hidden(self, pixels: Tensor, layer: int | None) -> Tensor:
        if layer is None:
            found = self.see(pixels).last_hidden_state
        else:
            found = self.see(pixels, output_hidden_states=True).hidden_states[layer]
        return as_tokens(found)


def as_tokens(found: Tensor) -> Tensor:
    """Tokens [B, N, C], or a map [B, C, h, w] whose places are tokens, as [B, N, C] in float32."""
    return (found.flatten(2).mT if found.ndim == 4 else found).float()


def feature_width(folder: Path) -> tuple[str, int]:
    """Name and channels of `features` of the model in a folder, by its config alone."""
    kind, width = read_kind(folder), read_width(folder)
    projected = FAMILIES.get(kind, GENERAL).output == "image_embeds"
    return called(kind, width), read_config(folder).get("projection_dim", 512) if projected else width


def check_layer(layer: int, count: int | None, kind: str) -> int:
    """The number of a layer of `count`, where -1 is the last; ValueError where a model has no such layer."""
    if count is None:
        if layer != -1:
            raise ValueError(f"a {kind} has no layers of tokens; leave layer at -1, its last hidden state")
        return layer
    if not -count - 1 <= layer <= count:
        raise ValueError(f"there is no layer {layer} in a {kind} of {count}; they are 0 to {count}, or -1 for the last")
    return layer % (count + 1)


def last_norm(model: nn.Module, kind: str) -> nn.Module:
    """The norm after the last block; ValueError where there is none."""
    for name in ("layernorm", "norm", "post_layernorm"):  # DINOv2, MAE; DINOv3; SigLIP
        if isinstance(found := getattr(model, name, None), nn.LayerNorm) and kind != "clip":
            return found
    raise ValueError(f"the tokens of a {kind} pass through no last norm; leave its scale and shift (affine=true)")


@torch.no_grad()
def plain(norm: nn.LayerNorm) -> None:
    """Make its scale 1 and its shift 0."""
    norm.weight.fill_(1), norm.bias.zero_()


def called(kind: str, width: int) -> str:
    """The model's name in numbers; with its size where the paper has a letter for it, or with its width."""
    letters = FAMILIES.get(kind, GENERAL).letters
    return f"{kind}_{letters.get(width, width)}" if letters else kind


def _model(folder: Path, family: Family) -> tuple[nn.Module, list[str]]:
    """The image half in float32, and which of its weights the folder lacks."""
    import transformers  # takes seconds, which the check of a recipe need not

    own = {"local_files_only": True} | family.arguments
    if family is GENERAL:
        own["config"] = _general_config(folder)
    model, report = getattr(transformers, family.architecture).from_pretrained(
        folder,
        use_safetensors=None if family.pickled else True,
        output_loading_info=True,
        dtype=torch.float32,
        **own,
    )
    half = getattr(model, "vision_model", model) if family is GENERAL else model
    if not hasattr(half.config, "image_size"):
        raise ValueError(f"{folder} holds a {type(model).__name__}, which sees no images of one size; name another")
    return half, sorted(report["missing_keys"])


def _general_config(folder: Path) -> Any:
    """The config of a model of no family; ValueError where transformers does not know it."""
    from transformers import CONFIG_MAPPING, AutoConfig

    if (kind := read_kind(folder)) not in CONFIG_MAPPING:
        raise ValueError(f"{folder} holds a {kind}, which transformers here does not know")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0  # a masked autoencoder sees whole images
    return config
