"""The patch critic of several scales: one for the image, and one for each halving of it."""

from diffusers import ConfigMixin, ModelMixin  # noqa: F401  from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.components import Arguments
from pipeline.critics.base import Critic
from pipeline.nn.patch_layers import Norm, activations, patch_layers, smallest_side
from pipeline.ranges import Count


class MultiscalePatch(Critic):
    """pix2pixHD's critics (Wang et al., arXiv:1711.11585, section 3.2), written from its description.

    `scales` patch critics, each with weights of its own; each but the first judges images of half the side of those
    that the one before judges, means over 3x3 pixels of which the border has fewer. The rest as in the patch critic.
    The published norm is that of every channel of an image on its own.
    """

    shows_layers = True

    @register_to_config
    def __init__(
        self, scales: Count = 3, width: Count = 64, layers: Count = 3, norm: Norm = "group", channels: Count = 3
    ):
        super().__init__()
        self.judges = nn.ModuleList(patch_layers(width, layers, norm, channels) for _ in range(scales))

    @classmethod
    def smallest(cls, arguments: Arguments) -> int:
        return (smallest_side(arguments.layers) - 1) * 2 ** (arguments.scales - 1) + 1  # halved sides are rounded up

    @classmethod
    def judges_batches(cls, arguments: Arguments) -> bool:
        return arguments.norm == "batch"

    def forward(self, images: Tensor, inner: bool = False) -> list[Tensor] | tuple[list[Tensor], list[Tensor]]:
        """Logits [B, 1, h, w] of each scale, fine to coarse; with `inner` also the layers' outputs."""
        logits, outputs = [], []
        for number, layers in enumerate(self.judges):
            if number:
                images = F.avg_pool2d(images, 3, 2, 1, count_include_pad=False)
            verdict, inner_layers = activations(layers, images)
            logits.append(verdict)
            outputs += inner_layers
        return (logits, outputs) if inner else logits
