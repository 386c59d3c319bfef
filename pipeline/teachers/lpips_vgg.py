"""VGG16 features with the channel weights of LPIPS: the backbone of the published perceptual distance."""

from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin  # from_pretrained looks ModelMixin up in this module
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.nn.image_channels import as_rgb
from pipeline.vision.weights import verify

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width and convolutions between poolings
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet's colours for images in [-1, 1]


class LpipsVgg(ModelMixin, ConfigMixin):
    """Maps after the last ReLU of each of VGG16's five stages, and LPIPS v0.1's weight for each of their channels.

    Simonyan and Zisserman, arXiv:1409.1556; Zhang et al., arXiv:1801.03924. Built with random weights; `load` reads the
    published ones. Images need 16 pixels per side or more.
    """

    SMALLEST = 16  # pixels per side
    FILES = ("vgg16", "lpips_vgg")  # names in pipeline.vision.weights, in the order that `load` takes them
    name = "lpips_vgg"

    @register_to_config
    def __init__(self):
        super().__init__()
        widths = [3, *(width for width, _ in STAGES)]
        self.stages = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(low if i == 0 else high, high, 3, padding=1) for i in range(convolutions))
            for low, (high, convolutions) in zip(widths, STAGES)
        )
        self.channel_weights = nn.ParameterList(torch.ones(width) for width in widths[1:])
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    @property
    def map_weights(self) -> list[Tensor]:
        """A [C] for every map."""
        return list(self.channel_weights)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Five maps [B, C, h, w] of images [B, C, H, W] in [-1, 1], as `as_rgb` takes them, halving in size."""
        if min(images.shape[2:]) < self.SMALLEST:
            sides = list(images.shape[2:])
            raise ValueError(f"LPIPS needs images of {self.SMALLEST} pixels per side or more, not {sides}")
        h, maps = (as_rgb(images) - self.mean) / self.std, []
        for i, stage in enumerate(self.stages):
            h = F.max_pool2d(h, 2) if i else h
            for convolution in stage:
                h = F.relu(convolution(h))
            maps.append(h)
        return maps

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.maps(images)

    @classmethod
    def load(cls, vgg16: Path, lpips_vgg: Path, check: bool = True) -> "LpipsVgg":
        """From torchvision's VGG16 file and LPIPS's own; frozen, in evaluation mode.

        Raises ValueError when a file is not the published one (`check`) or lacks what is needed.
        """
        for name, path in zip(cls.FILES, (vgg16, lpips_vgg) if check else ()):
            verify(name, path)
        features, linear = (torch.load(path, map_location="cpu", weights_only=True) for path in (vgg16, lpips_vgg))
        return cls.from_states(features, linear)

    @classmethod
    def from_states(cls, features: dict[str, Tensor], linear: dict[str, Tensor]) -> "LpipsVgg":
        """From the two files' contents: `features.<index>.*` of VGG16, `lin<stage>.model.1.weight` [1, C, 1, 1]."""
        network = cls()
        state, index = {}, 0  # torchvision counts convolutions, ReLUs and poolings
        for i, stage in enumerate(network.stages):
            for j in range(len(stage)):
                for name in ("weight", "bias"):
                    state[f"stages.{i}.{j}.{name}"] = features[f"features.{index}.{name}"]
                index += 2
            index += 1
            state[f"channel_weights.{i}"] = linear[f"lin{i}.model.1.weight"].flatten()
        network.load_state_dict(state)
        return network.requires_grad_(False).eval()
