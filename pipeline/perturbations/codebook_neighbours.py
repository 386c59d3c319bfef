"""Ids exchanged for near ones, as a generator mistakes them."""

from typing import Literal

import torch
from torch import Tensor

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code, LatentSpec, stack_ids
from pipeline.draws import StepDraws
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.full_precision import full_precision
from pipeline.nn.straight_through import straight_through
from pipeline.perturbations.base import Annealing, Perturbation, first_images
from pipeline.ranges import Count, Fraction


class CodebookNeighbours(Perturbation):
    """Qiu et al., arXiv:2503.08354 and 2509.12474: rate alpha, fraction beta, strength delta of their papers.

    In the first floor(`fraction` B) images of a batch every id is, with probability `rate`, drawn anew and evenly from
    `strength` codes: itself and those nearest to its latent (as in the public code) or to its own code vector (as in
    the paper, `neighbours: codeword`). So rate (1 - 1 / strength) of the ids change. z is what the new ids look up,
    with the gradient that the clean z has. With several codebooks each goes by itself.

    Annealing multiplies rate and strength (rounded down, at least 1), not the fraction. Published: rate 1, fraction
    0.1, strength 100 of 4096 codes, annealed to 0.5 between 20 % and 60 % of the training.
    """

    def __init__(
        self,
        strength: Count,
        rate: Fraction = 1.0,
        fraction: Fraction = 0.1,
        neighbours: Literal["latent", "codeword"] = "latent",
        anneal: Annealing | None = None,
    ):
        self.strength, self.rate, self.fraction, self.neighbours, self.anneal = (
            strength,
            rate,
            fraction,
            neighbours,
            anneal,
        )

    def check(self, spec: LatentSpec, can: Capabilities) -> None:
        if not spec.vocab:
            raise ValueError(
                "codebook_neighbours exchanges ids, this tokenizer has none; take gaussian or interpolated"
            )
        if self.strength > spec.codes:
            raise ValueError(f"strength {self.strength} is more than the {spec.codes} codes there are; 2.4 % is usual")

    def at(self, step: int) -> tuple[float, int]:
        """Rate and strength at a step."""
        factor = self.factor(step)
        return factor * self.rate, max(1, int(factor * self.strength + 1e-6))

    def perturb(self, neck: Bottleneck, h: Tensor, code: Code, draws: StepDraws, step: int) -> Tensor:
        rate, strength = self.at(step)
        with torch.no_grad(), full_precision(h):
            latents = neck.latents(h.float()) if self.neighbours == "latent" else None
            rates = rate * first_images(self.fraction, draws, h.device)[:, :, 0]  # [B, 1]
            ids = neck.redraw_ids(code.ids, rates, strength, draws, latents)
            changed = stack_ids(ids != code.ids).any(dim=-1, keepdim=True)
            value = torch.where(changed, neck.lookup(ids).to(code.z.dtype), code.z)
        return straight_through(value, code.z)
