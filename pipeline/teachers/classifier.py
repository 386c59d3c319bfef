"""A small classifier trained on a recipe's own images: the judge of samples, a stand-in for perceptual features."""

from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from pipeline.draws import mix
from pipeline.nn.convolution_stages import WIDTH, ConvolutionStages, stage_channels, stem_and_stages
from pipeline.nn.devices import has_fused_updates
from pipeline.ranges import Count, RangedArguments, Whole


class Classifier(RangedArguments, ConvolutionStages, ModelMixin, ConfigMixin):
    """A convolutional network from images [B, C, H, W] in [-1, 1] (8 pixels per side or more) to class logits.

    Every stage halves the side and doubles the channels; what each leaves is a feature map, the mean over the last is
    projected to `dim` features. Features are few, so that a covariance over some hundred images has full rank.
    """

    map_weights = None  # see pipeline.nn.feature_distance: all channels count alike

    @register_to_config
    def __init__(
        self,
        num_classes: Whole,
        width: Count = WIDTH,
        stages: Whole = 2,
        stride: Count = 1,
        dim: Count = 64,
        task: Literal["classifier", "rotation"] = "classifier",
    ):
        super().__init__(width, stages, stride)
        self.project = nn.Linear(stage_channels(width, stages)[-1], dim)
        self.head = nn.Linear(dim, num_classes)

    @property
    def name(self) -> str:
        """What numbers on its features are called after: `classifier`, or `rotation` where there were no classes."""
        return self.config.task

    @property
    def dim(self) -> int:
        """Channels of `features`."""
        return self.config.dim

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each of `maps`."""
        return tuple(part[0].out_channels for part in (self.stem, *(block[-1] for block in self.blocks)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes]."""
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """[B, dim], the layer before the logits."""
        return F.silu(self.project(self.maps(images)[-1].mean(dim=(2, 3))))

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor, batch: int = 256) -> float:
        """Fraction of images [n, C, H, W] whose largest logit is at their label [n]."""
        guesses = torch.cat([self(part).argmax(1) for part in images.split(batch)])
        return (guesses == labels).cpu().double().mean().item()


def fit(
    images: Tensor,
    labels: Tensor | None,
    num_classes: int,
    seed: int,
    steps: int = 300,
    batch: int = 64,
    dim: int = 64,
) -> Classifier:
    """Train on images [n, C, H, W] in [-1, 1] with labels [n], under small shifts, turns and changes of size.

    Without classes (labels None or fewer than two classes) it learns to tell the four quarter turns of an image
    (Gidaris et al., arXiv:1803.07728). The result is frozen, in eval mode, on the images' device, and a function of the
    arguments alone; the global random state is left as it was. Raises ValueError for images under 8 pixels.
    """
    labelled = labels is not None and num_classes > 1
    task = "classifier" if labelled else "rotation"
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, "classifier"))
        network = Classifier(
            num_classes if labelled else 4, **stem_and_stages(min(images.shape[2:])), dim=dim, task=task
        )
    network = network.to(images.device, memory_format=torch.channels_last)
    _train(network, images, labels if labelled else None, seed, steps, batch)
    return network.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def _train(network: Classifier, images: Tensor, labels: Tensor | None, seed: int, steps: int, batch: int) -> None:
    randomness = Generator().manual_seed(mix(seed, "batches"))
    fused = has_fused_updates(images.device) or None
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.02, fused=fused)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps, pct_start=0.2)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (batch,), generator=randomness)
        picked = jitter(images[chosen.to(images.device)], randomness).contiguous(memory_format=torch.channels_last)
        if labels is None:
            picked, targets = rotate(picked, randomness)
        else:
            targets = labels[chosen.to(labels.device)].to(images.device)
        loss = F.cross_entropy(network(picked), targets, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()


def jitter(images: Tensor, randomness: Generator, shift: float = 0.08, turn: float = 0.2, scale: float = 0.1) -> Tensor:
    """Every image moved by up to `shift` of its side, turned by up to `turn` radians and resized by up to `scale`."""
    draws = torch.rand(len(images), 4, generator=randomness) * 2 - 1
    angle, size, move = draws[:, 0] * turn, 1 + draws[:, 1] * scale, draws[:, 2:] * 2 * shift
    cosine, sine = angle.cos() * size, angle.sin() * size
    rows = torch.stack([cosine, -sine, move[:, 0], sine, cosine, move[:, 1]], dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3).to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def rotate(images: Tensor, randomness: Generator) -> tuple[Tensor, Tensor]:
    """The central square of each image by its own number of quarter turns, and those numbers [B]."""
    side = min(images.shape[2:])
    top, left = ((length - side) // 2 for length in images.shape[2:])
    images = images[:, :, top : top + side, left : left + side]
    turns = torch.randint(4, (len(images),), generator=randomness).to(images.device)
    all_four = torch.stack([images.rot90(k, dims=(2, 3)) for k in range(4)])  # [4, B, C, S, S]
    return all_four[turns, torch.arange(len(images), device=images.device)], turns
