"""The patch critic: one verdict for every patch of an image."""

from typing import Literal

from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from pipeline.components import Arguments
from pipeline.critics.base import Critic
from pipeline.nn.patch_layers import Norm, activations, patch_layers, smallest_side
from pipeline.ranges import Count


class Patch(Critic):
    """PatchGAN (Isola et al., arXiv:1611.07004): 4x4 convolutions, `layers` of them with stride 2.

    `channels` are those of the images, or of the band of them that a phase trains.
    Widths double from `width` up to eight times it. Normal initialisation, std 0.02. With `norm="group"` (eight groups)
    a verdict depends on its own image alone, so that any number of processes trains the same critic;
    "batch" is the published form. It judges pixels as they are, in [-1, 1], or, with `pixels="unit"`, in [0, 1], as
    RecTok's does, where the convolutions' padding is black. Parameters are named as in the public
    implementations (`main.0`, ...).
    """

    shows_layers = True

    @register_to_config
    def __init__(
        self,
        width: Count = 64,
        layers: Count = 3,
        norm: Norm = "group",
        channels: Count = 3,
        pixels: Literal["signed", "unit"] = "signed",
    ):
        super().__init__()
        self.main = patch_layers(width, layers, norm, channels)

    @classmethod
    def smallest(cls, arguments: Arguments) -> int:
        return smallest_side(arguments.layers)

    @classmethod
    def judges_batches(cls, arguments: Arguments) -> bool:
        return arguments.norm == "batch"

    def forward(self, images: Tensor, inner: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits [B, 1, h, w], one per patch; with `inner` also the layers' outputs."""
        images = (images + 1) / 2 if self.config.pixels == "unit" else images
        return activations(self.main, images) if inner else self.main(images)
