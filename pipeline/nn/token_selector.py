"""Which tokens of an image are kept: a decision for each, that a gradient passes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KEEP = 0  # channel of the two


class TokenSelector(nn.Module):
    """Tokens [B, N, width] to log-probabilities [B, N, 2] of being kept, and of not being kept.

    Half of the channels stay those of each token, half become their mean over tokens. LaVIT (Jin et al.,
    arXiv:2309.04669), as DynamicViT has it (Rao et al., arXiv:2106.02034).
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.embedding = nn.Linear(width, width)
        widths = (width, width // 2, width // 4, 2)
        self.layers = nn.ModuleList(nn.Linear(low, high) for low, high in zip(widths, widths[1:]))

    def forward(self, tokens: Tensor) -> Tensor:
        own, shared = F.gelu(self.embedding(self.norm(tokens))).chunk(2, dim=-1)
        h = torch.cat([own, shared.mean(dim=1, keepdim=True).expand_as(shared)], dim=-1)
        for layer in self.layers[:-1]:
            h = F.gelu(layer(h))
        return self.layers[-1](h).float().log_softmax(dim=-1)


def sample_decisions(log_probabilities: Tensor, noise: Tensor) -> Tensor:
    """Decisions [B, N], 1 where a token is kept, of [B, N, 2] and Gumbel noise of that shape.

    Their gradient is that of softmax(log-probabilities + noise), the straight-through Gumbel-softmax of Jang et al.,
    arXiv:1611.01144, at a temperature of 1. Where no token of an image would be kept, the nearest to it is.
    """
    noised = log_probabilities + noise
    margin = (noised[..., KEEP] - noised[..., 1 - KEEP]).detach()
    kept = (margin > 0) | first_places(margin, torch.ones_like(margin[:, :1], dtype=torch.int64))
    return with_slope(kept, noised.softmax(dim=-1)[..., KEEP])


def likeliest_decisions(log_probabilities: Tensor) -> Tensor:
    """As `sample_decisions`, without noise: as many tokens as are expected to be kept, one at least, the likeliest."""
    shares = log_probabilities[..., KEEP].exp()
    count = shares.detach().sum(dim=1, keepdim=True).round().long().clamp(min=1)
    return with_slope(first_places(log_probabilities[..., KEEP].detach(), count), shares)


def first_places(values: Tensor, count: Tensor) -> Tensor:
    """Where the `count` [B, 1] largest of each row of values [B, N] are, bool; the first ones of equal values."""
    order = values.argsort(dim=1, descending=True, stable=True)
    among = torch.arange(values.shape[1], device=values.device) < count
    return torch.zeros_like(among).scatter(1, order, among)


def with_slope(kept: Tensor, shares: Tensor) -> Tensor:
    """`kept` as numbers of exactly 0 and 1, with the gradient of `shares`."""
    return kept.to(shares.dtype) + (shares - shares.detach())
