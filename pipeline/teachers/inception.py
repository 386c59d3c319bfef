"""The Inception network of 2015 whose features the Fréchet inception distance is defined on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.vision.weights import verify

Kernel = int | tuple[int, int] | Literal["fork"]  # a fork: 1 x 3 and 3 x 1 side by side
Step = tuple[int, Kernel]  # channels out, kernel

SIZE = 299  # pixels per side
SPATIAL = 7  # channels that the spatial distance takes, of 17 x 17 places
BLOCKS = {  # by its name in the published file: channels in, then the branches by theirs, then what the pooled one does
    "Mixed_5b": (192, "fine", "mean", 32),
    "Mixed_5c": (256, "fine", "mean", 64),
    "Mixed_5d": (288, "fine", "mean", 64),
    "Mixed_6a": (288, "halve_fine", "halve", 0),
    "Mixed_6b": (768, 128, "mean", 192),
    "Mixed_6c": (768, 160, "mean", 192),
    "Mixed_6d": (768, 160, "mean", 192),
    "Mixed_6e": (768, 192, "mean", 192),
    "Mixed_7a": (768, "halve_middle", "halve", 0),
    "Mixed_7b": (1280, "coarse", "mean", 192),
    "Mixed_7c": (2048, "coarse", "max", 192),  # a maximum, where every other Inception has a mean
}
ACROSS, DOWN = (1, 7), (7, 1)
BRANCHES: dict[str, dict[str, list[Step]]] = {
    "fine": {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
    },
    "halve_fine": {"branch3x3": [(384, 3)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]},
    "halve_middle": {
        "branch3x3": [(192, 1), (320, 3)],
        "branch7x7x3": [(192, 1), (192, ACROSS), (192, DOWN), (192, 3)],
    },
    "coarse": {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), (384, "fork")],
        "branch3x3dbl": [(448, 1), (384, 3), (384, "fork")],
    },
}


@dataclass
class InceptionOutput:
    """The network's outputs for B images."""

    pooled: Tensor  # [B, 2048]
    spatial: Tensor  # [B, 2023]: 17 x 17 places of 7 channels, channels last, as ADM's statistics have them
    logits: Tensor  # [B, 1008], without the bias, as published inception scores are


class Inception(nn.Module):
    """Szegedy et al., arXiv:1512.00567, as in the graph of 2015-12-05, and in pytorch-fid and torch-fidelity.

    Built with random weights; `load` reads the published ones. Means over a window leave out what is padded, the last
    block takes a maximum in the mean's place, and there are 1,008 classes.
    """

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, padded=False)
        for name, (channels, branches, pool, pooled) in BLOCKS.items():
            steps = middle(branches) if isinstance(branches, int) else BRANCHES[branches]
            self.add_module(name, Mixed(channels, steps, pool, pooled))
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> InceptionOutput:
        """images [B, 3, 299, 299] in [0, 255]."""
        h = self.stem((images - 128) / 128)
        for name in BLOCKS:
            block = self.get_submodule(name)
            if name == "Mixed_6d":  # mixed_6/conv of the original graph
                spatial = block.branch1x1(h)[:, :SPATIAL].permute(0, 2, 3, 1).flatten(1)
            h = block(h)
        pooled = h.mean(dim=(2, 3))
        return InceptionOutput(pooled, spatial, F.linear(pooled, self.fc.weight))

    def stem(self, h: Tensor) -> Tensor:
        """[B, 3, 299, 299] in [-1, 1] to [B, 192, 35, 35]."""
        h = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(h)))
        h = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(h, 3, 2)))
        return F.max_pool2d(h, 3, 2)

    @classmethod
    def load(cls, path: Path) -> "Inception":
        """From the published file, which pytorch-fid and torch-fidelity give two names; frozen, in evaluation mode.

        Raises ValueError when it is another file.
        """
        verify("inception", path)
        network = cls()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return network.requires_grad_(False).eval()


class Convolution(nn.Module):
    """A convolution without bias, normalised over the batch (in evaluation by stored moments), then ReLU."""

    def __init__(self, channels: int, width: int, kernel: int | tuple[int, int], stride: int = 1, padded: bool = True):
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple(side // 2 if padded else 0 for side in sides)
        self.conv = nn.Conv2d(channels, width, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, h: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(h)))


class Mixed(nn.Module):
    """Branches of convolutions and a pooled one, side by side, their channels joined.

    A branch of one convolution has the name given; of several they are numbered from 1, those of a fork lettered. With
    `halve` the last convolution of every branch has stride 2 and no padding, and the pooled branch is the maximum.
    """

    def __init__(
        self, channels: int, branches: dict[str, list[Step]], pool: Literal["mean", "max", "halve"], pooled: int
    ):
        super().__init__()
        self.pool = pool
        self.paths = [self.branch(channels, name, steps) for name, steps in branches.items()]
        if pooled:
            self.branch_pool = Convolution(channels, pooled, 1)

    def branch(self, channels: int, name: str, steps: list[Step]) -> list[list[str]]:
        """Add a branch's convolutions; returns their names, step by step, of which only the last may have two."""
        path = []
        for number, (width, kernel) in enumerate(steps, 1):
            name_here = f"{name}_{number}" if len(steps) > 1 else name
            forked = {"a": (1, 3), "b": (3, 1)} if kernel == "fork" else {"": kernel}
            halved = self.pool == "halve" and number == len(steps)
            for letter, sides in forked.items():
                convolution = Convolution(channels, width, sides, stride=2 if halved else 1, padded=not halved)
                self.add_module(name_here + letter, convolution)
            path.append([name_here + letter for letter in forked])
            channels = width
        return path

    def forward(self, h: Tensor) -> Tensor:
        outputs = []
        for path in self.paths:
            branch = h
            for names in path:
                branch = torch.cat([self.get_submodule(name)(branch) for name in names], dim=1)
            outputs.append(branch)
        return torch.cat([*outputs, self.pooled(h)], dim=1)

    def pooled(self, h: Tensor) -> Tensor:
        if self.pool == "halve":
            return F.max_pool2d(h, 3, 2)
        if self.pool == "max":
            return self.branch_pool(F.max_pool2d(h, 3, 1, 1))
        return self.branch_pool(F.avg_pool2d(h, 3, 1, 1, count_include_pad=False))


def middle(width: int) -> dict[str, list[Step]]:
    """The branches of the 17 x 17 blocks, which differ in their inner width."""
    return {
        "branch1x1": [(192, 1)],
        "branch7x7": [(width, 1), (width, ACROSS), (192, DOWN)],
        "branch7x7dbl": [(width, 1), (width, DOWN), (width, ACROSS), (width, DOWN), (192, ACROSS)],
    }
