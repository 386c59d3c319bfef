"""The critic of frozen features: small heads judge what a vision model sees of an image at several depths."""

import math
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.critics.base import Critic
from pipeline.nn.spectral import SpectralConv1d
from pipeline.nn.unregistered import Unregistered
from pipeline.teachers.base import Teacher

VIRTUAL_BATCH = 8
Norm = Literal["group", "batch"]


class FrozenFeatures(Critic):
    """StyleGAN-T's projected critic (Sauer et al., arXiv:2301.09515, section 3.2), written from its description.

    A frozen `teacher` shows the maps `layers` of its patches; each has a head of its own over its places, row by row.
    Only the heads are trained and saved. With `norm="group"` (eight groups) a verdict depends on its own image alone,
    so that any number of processes trains the same critic; "batch" is the published form, statistics of every eight
    images of a batch at hand, with no running ones.

    `teacher` is the name of known weights, a folder, a model of the hub, or `classifier`: a small one of the recipe's
    own images, all of whose maps are judged. `auto` is DINO's ViT-S/16 where that is found, else the classifier.
    Layers are counted in blocks and shown as `readout` of `pipeline.teachers.vision_model` says; None is what the first
    block reads and what each quarter of the blocks leaves, which is the published choice. `teacher_size` is the side
    in pixels that images are brought to, None the model's own. `widths` are the channels of the maps, and `source` is
    the teacher's name: both are determined by it.
    """

    @register_to_config
    def __init__(
        self,
        widths: list[int],
        source: str,
        teacher: str = "auto",
        layers: list[int] | None = None,
        teacher_size: int | Literal["grid"] | None = None,
        kernel: int = 9,
        norm: Norm = "group",
    ):
        super().__init__()
        self.heads = nn.ModuleList(Head(width, kernel, norm) for width in widths)
        self.sight: Unregistered | None = None

    @property
    def name(self) -> str:
        return f"_{self.config.source}"

    def see_by(self, teacher: Teacher) -> "FrozenFeatures":
        """Judge by this teacher's maps from now on, with itself as the result; a loaded critic has none yet."""
        if list(teacher.widths) != list(self.config.widths):
            raise ValueError(
                f"{teacher.name} shows maps of {list(teacher.widths)} channels, this critic's heads are for"
                f" {list(self.config.widths)}"
            )
        self.sight = Unregistered(teacher)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits [B, N], one a place, of each map."""
        if self.sight is None:
            raise ValueError(f"this critic judges by {self.config.source}, which it does not have; call see_by first")
        maps = self.sight.module.maps(images)
        return tuple(head(m.flatten(2)) for head, m in zip(self.heads, maps, strict=True))


class Head(nn.Module):
    """A sequence [B, C, N] to a logit a place, [B, N]: a 1x1 unit, a unit over `kernel` places beside it, and a 1x1
    convolution."""

    def __init__(self, width: int, kernel: int, norm: Norm):
        super().__init__()
        self.enter, self.mix = Unit(width, 1, norm), Unit(width, kernel, norm)
        self.leave = SpectralConv1d(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.leave((h + self.mix(h)) / math.sqrt(2))[:, 0]


class Unit(nn.Module):
    """Convolution, norm, leaky ReLU, [B, C, N] to the same."""

    def __init__(self, width: int, kernel: int, norm: Norm):
        super().__init__()
        self.convolution = SpectralConv1d(width, width, kernel)
        self.norm = VirtualBatchNorm(width) if norm == "batch" else nn.GroupNorm(math.gcd(8, width), width)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.convolution(x)), 0.2)


class VirtualBatchNorm(nn.Module):
    """Batch norm over every eight images of [B, C, N], or over as many below eight as divide B; never by running
    statistics."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        groups = x.unflatten(0, (-1, math.gcd(VIRTUAL_BATCH, len(x))))  # [G, b, C, N]
        made = [F.batch_norm(group, None, None, self.weight, self.bias, training=True) for group in groups]
        return torch.cat(made)
