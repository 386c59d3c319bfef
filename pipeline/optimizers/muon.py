"""Orthogonal updates for the matrices of hidden layers, and AdamW for the rest."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.optimizers.base import Betas, Decay, Optimizer, groups_of, trained
from pipeline.ranges import Count, FractionBelowOne, Positive


class Muon(Optimizer):
    """Jordan et al., 2024 (kellerjordan.github.io/posts/muon): a matrix moves by its momentum with all singular values
    brought to about 1.

    Its matrices are the weights of linear layers inside a repeated block of the player. AdamW trains the rest:
    embeddings, heads and other layers outside of blocks, positions, vectors, and kernels of convolutions, which are no
    matrices. A projection to queries, keys and values together is one matrix. The update of an A x B matrix is scaled
    by 0.2 sqrt(max(A, B)), to the size of AdamW's (Liu et al., arXiv:2502.16982), so that one rate serves both, and
    decay is decoupled in both. Steps of Newton and Schulz are in bfloat16.

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
        self.settings = {"momentum": momentum, "nesterov": nesterov, "ns_steps": iterations}

    @classmethod
    def check_machine(cls) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"muon needs torch 2.9 or newer, and this is {torch.__version__}; take adamw")

    def build(self, player: nn.Module, decay: Decay) -> torch.optim.Optimizer:
        self.check_machine()
        matrices = {id(weight) for weight in hidden_matrices(player)}
        if not matrices:
            raise ValueError("this player has no linear layers in repeated blocks, which muon is for; take adamw")
        parts: list[torch.optim.Optimizer] = []
        hidden, rest = [], []
        for name, parameter in trained(player):
            (hidden if id(parameter) in matrices else rest).append((name, parameter))
        if hidden:
            parts.append(
                torch.optim.Muon(groups_of(hidden, decay), lr=0.0, adjust_lr_fn="match_rms_adamw", **self.settings)
            )
        if rest:
            of_rest = {"betas": self.betas, "eps": self.epsilon, "fused": True}
            parts.append(torch.optim.AdamW(groups_of(rest, decay), lr=0.0, **of_rest))
        return Joined(parts)


def hidden_matrices(player: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of linear layers in the blocks of a module's lists; a layer that is itself an entry is a head."""
    for blocks in player.modules():
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            for module in () if isinstance(block, nn.Linear) else block.modules():
                if isinstance(module, nn.Linear):
                    yield module.weight


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
