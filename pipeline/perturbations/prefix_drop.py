"""Codes of which only a beginning is left, so that the first tokens come to matter most."""

from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code, LatentSpec
from pipeline.draws import StepDraws
from pipeline.nn.capabilities import Capabilities
from pipeline.perturbations.base import Perturbation
from pipeline.ranges import Count, Fraction


class PrefixDrop(Perturbation):
    """Nested dropout over ordered tokens (Rippel et al., arXiv:1402.0915): the first k of N are kept, k is drawn.

    `lengths` says which k there are: every one from `least` to N ("uniform"), or the powers of two from `least` on, and
    N; `chance` how often each comes: all alike, or in proportion to k. `full` states the probability of N itself; null
    makes it a length like the others. k is one for the whole global batch, or each image's own (`scope`). The rest is
    cut off, or set to 0 ("mask"), which a decoder that embeds tokens linearly sees as its embedding's bias: a learned
    mask token. Cutting needs one k for all.

    One-D-Piece (arXiv:2501.10064) is the default. ResTok: powers_of_two, by_length, least 4, full 0.8, sample, mask.
    """

    def __init__(
        self,
        lengths: Literal["uniform", "powers_of_two"] = "uniform",
        chance: Literal["equal", "by_length"] = "equal",
        least: Count = 1,
        full: Fraction | None = None,
        scope: Literal["batch", "sample"] = "batch",
        action: Literal["truncate", "mask"] = "truncate",
    ):
        if scope == "sample" and action == "truncate":
            raise ValueError(
                "images of one batch cannot be cut to lengths of their own; set action=mask or scope=batch"
            )
        self.lengths, self.chance, self.least, self.full = lengths, chance, least, full
        self.scope, self.action, self.cuts = scope, action, action == "truncate"

    def check(self, spec: LatentSpec, can: Capabilities) -> None:
        if len(spec.grid) > 1:
            raise ValueError(f"prefix_drop is for 1-D tokens, this tokenizer's lie on a grid of {list(spec.grid)}")
        if self.least > spec.tokens:
            raise ValueError(f"least {self.least} is more than the {spec.tokens} tokens there are; lower it")
        if self.action == "truncate" and not can.prefixes:
            raise ValueError("this tokenizer's decoder needs all its tokens; set action=mask")

    def chances(self, tokens: int) -> dict[int, float]:
        """The lengths that are drawn of `tokens`, ascending, with their probabilities."""
        shorter = range(self.least, tokens)
        if self.lengths == "powers_of_two":
            shorter = [length for length in shorter if length & (length - 1) == 0]
        weights = {length: length if self.chance == "by_length" else 1 for length in [*shorter, tokens]}
        if self.full is None or not shorter:
            return {length: weight / sum(weights.values()) for length, weight in weights.items()}
        total = sum(weights.values()) - weights.pop(tokens)
        return {length: (1 - self.full) * weight / total for length, weight in weights.items()} | {tokens: self.full}

    def count_kept(self, uniform: Tensor, tokens: int) -> Tensor:
        """Lengths [...] int64 by inverting their distribution at numbers [...] in [0, 1)."""
        chances = self.chances(tokens)
        bounds = torch.tensor(list(accumulate(chances.values()))[:-1], dtype=uniform.dtype, device=uniform.device)
        return torch.tensor(list(chances), device=uniform.device)[torch.bucketize(uniform, bounds, right=True)]

    def perturb(self, neck: Bottleneck, h: Tensor, code: Code, draws: StepDraws, step: int) -> Tensor:
        tokens = code.z.shape[1]
        if self.scope == "batch":
            kept = self.count_kept(draws.uniform_of_all("perturbation.length")[:1], tokens)  # [1]
        else:
            kept = self.count_kept(draws.uniform("perturbation.length"), tokens)  # [B]
        if self.action == "truncate":
            return code.z[:, : int(kept)]
        positions = torch.arange(tokens, device=code.z.device)
        return code.z * (positions < kept.to(positions.device)[:, None])[:, :, None].to(code.z)
