"""Orthogonal updates for the matrices of hidden layers, and AdamW for the rest."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.nn.devices import product_type
from pipeline.optimizers.base import Betas, Grouping, Optimizer, fused, groups_of, trained
from pipeline.ranges import Count, FractionBelowOne, Positive


class Muon(Optimizer):
    """Jordan et al., 2024 (kellerjordan.github.io/posts/muon): a matrix moves by its momentum with all singular values
    brought to about 1.

    Its matrices are the weights of linear layers inside a repeated block of the player. AdamW trains the rest:
    embeddings, heads and other layers outside of blocks, positions, vectors, and kernels of convolutions, which are no
    matrices. A projection to queries, keys and values together is one matrix. The update of an A x B matrix is scaled
    by 0.2 sqrt(max(A, B)), to the size of AdamW's (Liu et al., arXiv:2502.16982), so that one rate serves both, and
    decay is decoupled in both. The rule is that of `torch.optim.Muon`, whose steps of Newton and Schulz are in
    bfloat16; here on a GPU alone, since most CPUs emulate it.

    Args:
        momentum: decay per step of the running mean of the gradient.
        nesterov: move by the mean that the next gradient would find.
        iterations: steps of Newton and Schulz.
        betas: AdamW's.
        epsilon: AdamW's.
    """

    bytes_per_parameter = 4  # of the matrices, which are most of a network

    def __init__(
        self,
        momentum: FractionBelowOne = 0.95,
        nesterov: bool = True,
        iterations: Count = 5,
        betas: Betas = (0.9, 0.95),
        epsilon: Positive = 1e-8,
    ):
        self.betas, self.epsilon = tuple(betas), epsilon
        self.settings = {"momentum": momentum, "nesterov": nesterov, "iterations": iterations}

    def build(self, player: nn.Module, grouping: Grouping) -> torch.optim.Optimizer:
        matrices = {id(weight) for weight in hidden_matrices(player)}
        if not matrices:
            raise ValueError("this player has no linear layers in repeated blocks, which muon is for; take adamw")
        parts: list[torch.optim.Optimizer] = []
        hidden, rest = [], []
        for name, parameter in trained(player):
            (hidden if id(parameter) in matrices else rest).append((name, parameter))
        if hidden:
            parts.append(Orthogonal(groups_of(hidden, grouping), **self.settings))
        if rest:
            of_rest = {"betas": self.betas, "eps": self.epsilon, "fused": fused(player)}
            parts.append(torch.optim.AdamW(groups_of(rest, grouping), lr=0.0, **of_rest))
        return Joined(parts)


def hidden_matrices(player: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of linear layers in the blocks of a module's lists; a layer that is itself an entry is a head."""
    for blocks in player.modules():
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            for module in () if isinstance(block, nn.Linear) else block.modules():
                if isinstance(module, nn.Linear):
                    yield module.weight


class Orthogonal(torch.optim.Optimizer):
    """Of matrices: each moves by its momentum made orthogonal, times the rate and 0.2 sqrt(max(rows, columns))."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float, nesterov: bool, iterations: int):
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "nesterov": nesterov, "iterations": iterations})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None if closure is None else closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self.move(matrix, group)
        return result

    def move(self, matrix: nn.Parameter, group: dict[str, Any]) -> None:
        """One step of one matrix."""
        state, gradient = self.state[matrix], matrix.grad
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        mean = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        step = orthogonal(gradient.lerp(mean, group["momentum"]) if group["nesterov"] else mean, group["iterations"])
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(step, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The matrix [A, B] with singular values of about 1 (0.7 to 1.2 after five steps), those of 0 apart.

    Steps x -> a x + b x^3 + c x^5 on its singular values, with Jordan et al.'s coefficients.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(product_type(matrix.device))
    x = x.mT if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


class Joined(torch.optim.Optimizer):
    """Several optimisers of different parameters as one, with the groups and the state of all of them."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]):
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        result = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Have the parts work on this optimiser's own groups and state."""
        first = 0
        for part in self.parts:
            count = len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first : first + count], self.state
            first += count
