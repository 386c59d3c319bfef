"""The critic of frozen features: small heads judge a vision model's feature maps of an image at several depths."""

import math
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.components import Arguments
from pipeline.critics.base import Critic
from pipeline.nn.spectral import SpectralConv1d
from pipeline.nn.unregistered import Unregistered
from pipeline.ranges import Count, Counts, Layers
from pipeline.teachers.base import GELU, Resize, Teacher

EPSILON = 1e-6  # of the virtual batch norm
Norm = Literal["group", "batch"]


class FrozenFeatures(Critic):
    """StyleGAN-T's projected critic (Sauer et al., arXiv:2301.09515, section 3.2), written from its description.

    A frozen `teacher` gives the maps `layers` of its patches; each has its own head over its positions, row by row.
    Only the heads are trained and saved. With `norm="group"` (eight groups) a verdict depends on its own image alone,
    so that any number of processes trains the same critic; "batch" is the published form, statistics of groups of at
    most `virtual_batch` images, equally many each, with no running ones.

    `teacher` is the name of known weights, a folder, a model of the hub, or `classifier`: a small one of the recipe's
    own images, all of whose maps are judged. `auto` is DINO's ViT-S/16 where that is found, else the classifier.
    Layers are counted in blocks and read as `readout` of `pipeline.teachers.vision_model` says; None is what the first
    block reads and the output of each quarter of the blocks, which is the published choice. `teacher_size` is the side
    in pixels that images are brought to, None the model's own; `teacher_resize` and `teacher_gelu` are the `resize` and
    the activation of `pipeline.teachers.vision_model`, in RobusTok's released code `area` and `tanh`. The
    class token is added to every patch's unless `class_token` is false, as in RAE's released code. `widths` are the
    channels of the maps, and `source` is the teacher's name: both are determined by it.
    """

    extractor_kind = "critic_maps"

    @register_to_config
    def __init__(
        self,
        widths: Counts,
        source: str,
        teacher: str = "auto",
        layers: Layers | None = None,
        teacher_size: Count | Literal["grid"] | None = None,
        kernel: Count = 9,
        norm: Norm = "group",
        virtual_batch: Count = 8,
        teacher_resize: Resize = "antialiased",
        teacher_gelu: GELU = "exact",
        class_token: bool = True,
    ):
        super().__init__()
        self.heads = nn.ModuleList(Head(width, kernel, norm, virtual_batch) for width in widths)
        self.extractor: Unregistered | None = None

    @property
    def name(self) -> str:
        return f"_{self.config.source}"

    @classmethod
    def judges_batches(cls, arguments: Arguments) -> bool:
        return arguments.norm == "batch"

    @classmethod
    def batch_statistics(cls, arguments: Arguments) -> tuple[str, ...]:
        return (*super().batch_statistics(arguments), "the directions of the critic's spectral norms")

    @classmethod
    def sizes_of(cls, extractor: Teacher) -> dict[str, Any]:
        return {"widths": list(extractor.widths), "source": extractor.name}

    def judge_by(self, extractor: Teacher) -> "FrozenFeatures":
        """This critic, judging by this teacher's maps from now on; a loaded critic has no teacher yet."""
        if list(extractor.widths) != list(self.config.widths):
            raise ValueError(
                f"{extractor.name} shows maps of {list(extractor.widths)} channels, this critic's heads are for"
                f" {list(self.config.widths)}"
            )
        self.extractor = Unregistered(extractor)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits [B, N], one per position, of each map."""
        if self.extractor is None:
            raise ValueError(f"this critic judges by {self.config.source}, which it does not have; call judge_by first")
        maps = self.extractor.module.maps(images)
        return tuple(head(m.flatten(2)) for head, m in zip(self.heads, maps, strict=True))


class Head(nn.Module):
    """A sequence [B, C, N] to a logit per position, [B, N].

    A 1x1 unit, a unit over `kernel` positions beside it, and a 1x1 convolution.
    """

    def __init__(self, width: int, kernel: int, norm: Norm, virtual_batch: int):
        super().__init__()
        self.enter, self.mix = Unit(width, 1, norm, virtual_batch), Unit(width, kernel, norm, virtual_batch)
        self.leave = SpectralConv1d(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.leave((h + self.mix(h)) / math.sqrt(2))[:, 0]


class Unit(nn.Module):
    """Convolution, norm, leaky ReLU, [B, C, N] to the same."""

    def __init__(self, width: int, kernel: int, norm: Norm, virtual_batch: int):
        super().__init__()
        self.convolution = SpectralConv1d(width, width, kernel)
        groups = math.gcd(8, width)
        self.norm = VirtualBatchNorm(width, virtual_batch) if norm == "batch" else nn.GroupNorm(groups, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.convolution(x)), 0.2)


class VirtualBatchNorm(nn.Module):
    """Batch norm of [B, C, N] over groups of at most `size` images, as few as divide B; never by running statistics."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.size = size
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        count = next(n for n in range(-(-len(x) // self.size), len(x) + 1) if len(x) % n == 0)
        groups = x.unflatten(0, (count, -1))  # [G, b, C, N]
        arguments = None, None, self.weight, self.bias
        return torch.cat([F.batch_norm(group, *arguments, training=True, eps=EPSILON) for group in groups])
