"""Low-rank adaptation: frozen matrices, each with a trained one of low rank added."""

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Adapted = Literal["attention", "feed_forward", "all"]


class LowRankLinear(nn.Linear):
    """x W^T + b + alpha / rank (x A^T) B^T, Hu et al., arXiv:2106.09685, equation 3; W and b are those of `layer`.

    A, `lora_down` [rank, inputs], begins as torch's linear layers do; B, `lora_up` [outputs, rank], at zero, and so the
    whole as `layer`.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float):
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias, self.scale = layer.weight, layer.bias, alpha / rank
        self.lora_down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.lora_up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_down) * self.scale
        return super().forward(x) + F.linear(low, self.lora_up)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer that computes the same: W + alpha / rank B A."""
        layer = nn.Linear(self.in_features, self.out_features, device="meta")
        layer.weight = nn.Parameter(self.weight + self.scale * self.lora_up @ self.lora_down)
        layer.bias = self.bias
        return layer.requires_grad_(self.weight.requires_grad)


def adapt(module: nn.Module, names: Iterable[str], rank: int, alpha: float) -> None:
    """Replace the linear layers of these names in `module` by `LowRankLinear`s."""
    for name in names:
        module.set_submodule(name, LowRankLinear(module.get_submodule(name), rank, alpha))


def merge(module: nn.Module) -> None:
    """Replace every `LowRankLinear` in `module` by the plain layer that computes the same: the inverse of `adapt`."""
    for name, layer in list(low_rank_layers(module)):
        module.set_submodule(name, layer.merged())


def low_rank_layers(module: nn.Module) -> Iterator[tuple[str, LowRankLinear]]:
    """Those in `module`, by name."""
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, LowRankLinear))


def adapters(module: nn.Module) -> list[nn.Parameter]:
    """The low-rank matrices in `module`."""
    return [matrix for _, layer in low_rank_layers(module) for matrix in (layer.lora_down, layer.lora_up)]
