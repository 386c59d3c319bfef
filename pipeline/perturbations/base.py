"""What every perturbation promises: a change of the decoder's input z while a tokenizer trains."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code, LatentSpec
from pipeline.draws import StepDraws
from pipeline.nn.capabilities import Capabilities
from pipeline.ranges import Count, Fraction, RangedArguments, RangedFields, Whole
from pipeline.validation import SettingError


@dataclass
class Annealing(RangedFields):
    """A factor that is 1 up to step `start`, goes linearly to `to`, and stays there from step `end` on."""

    start: Whole
    end: Count
    to: Fraction = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start >= self.end:
            raise SettingError("end", f" is step {self.end}, and start is step {self.start}; give a later step")

    def __call__(self, step: int) -> float:
        gone = min(max((step - self.start) / (self.end - self.start), 0.0), 1.0)
        return 1 + gone * (self.to - 1)


class Perturbation(RangedArguments, ABC):
    """A change of z between bottleneck and decoder.

    It reaches a tokenizer as the `perturb` of `forward`, which the training alone passes: `encode` and `decode` have no
    such argument. The code and the bottleneck's terms are those of the clean assignment; the losses compare the images
    that the decoder makes from the perturbed z. Every random number is a function of seed, step and position in the
    global batch.
    """

    anneal: Annealing | None = None
    cuts: bool = False  # whether the decoder may be given fewer tokens than the code has

    @abstractmethod
    def check(self, spec: LatentSpec, can: Capabilities) -> None:
        """ValueError, without the section of the recipe, where it does not fit the tokenizer's codes."""

    @abstractmethod
    def perturb(self, neck: Bottleneck, h: Tensor, code: Code, draws: StepDraws, step: int) -> Tensor:
        """The decoder's input [B, N, C] at the bottleneck's own scale, for the `code` that `neck` gives for `h`."""

    @torch.compiler.disable
    def __call__(self, neck: Bottleneck, h: Tensor, code: Code, draws: StepDraws, step: int) -> Tensor:
        return self.perturb(neck, h, code, draws, step)

    def factor(self, step: int) -> float:
        """What annealing leaves at this step, 1 without."""
        return 1.0 if self.anneal is None else self.anneal(step)


def first_images(fraction: float, draws: StepDraws, device: torch.device) -> Tensor:
    """Which images at hand are among the first floor(fraction B) of the global batch, [B, 1, 1] bool.

    The order of a batch is random already, so that these are as good as any others.
    """
    positions = torch.arange(draws.places.start, draws.places.stop, device=device)
    return (positions < int(fraction * draws.batch + 1e-6))[:, None, None]


def check_continuous(spec: LatentSpec, kind: str) -> None:
    if spec.vocab:
        raise ValueError(f"{kind} noise is for continuous codes, this tokenizer gives ids; take codebook_neighbours")
