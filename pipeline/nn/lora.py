"""Low-rank adaptation: frozen matrices, each with a trained one of low rank added."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Adapted = Literal["attention", "feed_forward", "all"]

LAYERS = {"attention": ("qkv", "proj"), "feed_forward": ("up", "down"), "all": ("qkv", "proj", "up", "down")}


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


def adapt(module: nn.Module, layers: Adapted, rank: int, alpha: float) -> None:
    """Replace every linear layer of these `LAYERS` in `module` by a `LowRankLinear`."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if name in LAYERS[layers] and isinstance(layer, nn.Linear):
                setattr(parent, name, LowRankLinear(layer, rank, alpha))


def adapters(module: nn.Module) -> list[nn.Parameter]:
    """The low-rank matrices in `module`."""
    layers = [layer for layer in module.modules() if isinstance(layer, LowRankLinear)]
    return [matrix for layer in layers for matrix in (layer.lora_down, layer.lora_up)]
