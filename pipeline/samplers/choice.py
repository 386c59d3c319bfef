"""Choosing ids from logits: temperature, top-k, top-p, and one uniform number a choice."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.ranges import FractionAboveZero, NotNegative, RangedFields, Whole
from pipeline.validation import SettingError

LOGITS = "the network's output for a token"  # in messages about logits that are not finite
SMALLEST = torch.finfo(torch.float32).tiny  # a temperature below it has no reciprocal: the likeliest id is taken


@dataclass(frozen=True)
class Choice(RangedFields):
    """How an id is chosen. A temperature of 0 takes the likeliest; `top_k` 0 and `top_p` 1 leave all ids in.

    `top_p` keeps the likeliest ids whose probabilities add up to at least that (Holtzman et al., arXiv:1904.09751).
    """

    temperature: NotNegative = 1.0  # divides the logits; 0 takes the likeliest id
    top_k: Whole = 0  # leaves so many of the likeliest ids; 0 leaves all
    top_p: FractionAboveZero = 1.0  # leaves the likeliest ids that have this probability together

    def validate(self, vocab: int) -> None:
        """ValueError where more ids are to be left in than there are."""
        if self.top_k > vocab:
            raise SettingError(
                "top_k", f" is {self.top_k}, and there are {vocab} ids; give at most {vocab}, or 0 for all"
            )

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Ids [...] of logits [..., vocab], each by inverting the distribution at `uniform` [...] in [0, 1).

        They are ids of the codebook whatever the logits are; a sampling refuses logits that are not finite.
        """
        if self.temperature < SMALLEST or self.top_k == 1:
            return logits.argmax(dim=-1)
        logits = logits.float()
        if self.temperature != 1:  # the largest becomes 0, which no temperature makes infinite
            logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature
        if not self.top_k and self.top_p == 1:
            return invert(logits.softmax(dim=-1), uniform)
        ids, shares = self.likeliest(logits)
        return ids.gather(-1, invert(shares, uniform)[..., None])[..., 0]

    def likeliest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [..., k] from the likeliest down, and their probabilities; 0 for those that `top_p` leaves out."""
        logits, ids = logits.topk(self.top_k or logits.shape[-1], dim=-1)
        shares = logits.softmax(dim=-1)
        if self.top_p < 1:
            before = shares.cumsum(dim=-1) - shares
            shares = shares * (before < self.top_p)
        return ids, shares

    def filter(self, logits: Tensor) -> Tensor:
        """Logits [..., vocab], divided by the temperature, at minus infinity where an id is left out."""
        if self.temperature < SMALLEST:
            return torch.full_like(logits, -torch.inf).scatter(-1, logits.argmax(dim=-1, keepdim=True), 0.0)
        logits = logits / self.temperature
        ids, shares = self.likeliest(logits)
        stays = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, shares > 0)
        return logits.masked_fill(~stays, -torch.inf)


def invert(shares: Tensor, uniform: Tensor) -> Tensor:
    """The index whose part of [0, sum) holds uniform * sum: shares [..., n] need not add up to one."""
    ends = shares.cumsum(dim=-1)
    place = uniform[..., None] * ends[..., -1:]
    last = torch.searchsorted(ends, ends[..., -1:].contiguous())  # where rounding took `place` up to the sum
    index = torch.minimum(torch.searchsorted(ends, place, right=True), last)[..., 0]
    return index.clamp_max(shares.shape[-1] - 1)  # past the end where shares are nan
