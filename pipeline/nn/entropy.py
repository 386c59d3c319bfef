"""The entropy term of quantisers: every token sure of its code, all codes in use."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.nn.processes import global_mean

AT_ONCE = 2**26  # numbers of a [tokens, codes] table that are in memory together


def tokens_at_once(codes: int) -> int:
    """Rows of a [tokens, codes] table that are computed together."""
    return max(1, AT_ONCE // codes)


def entropy_gap(latents: Tensor, logits: Callable[[Tensor], Tensor], codes: int) -> Tensor:
    """Mean entropy of the tokens' distributions over codes less the entropy of their mean, in nats.

    `latents` [T, C]; `logits` maps rows [t, C] of them to [t, codes]; their softmax is a token's distribution.
    Jansen et al., arXiv:1911.05894, equation 7; Yu et al., arXiv:2310.05737, equation 5. As in the public code, 1e-5
    is added inside the logarithm of the mean. The mean is over the tokens of all processes (of each micro-batch, with
    accumulation). A table larger than AT_ONCE is computed in parts, and each part once more in the backward pass, so
    that it is never whole.
    """

    def part(rows: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits(rows).log_softmax(dim=-1)
        p = log_p.exp()
        return -(p * log_p).sum(), p.sum(dim=0)

    parts = latents.split(tokens_at_once(codes))
    sums = [checkpoint(part, rows, use_reentrant=False) if len(parts) > 1 else part(rows) for rows in parts]
    each = sum(entropy for entropy, _ in sums) / len(latents)
    mean = global_mean(sum(p for _, p in sums) / len(latents))  # [codes]
    return each + (mean * torch.log(mean + 1e-5)).sum()
