"""The running average of a module's weights, in fp32, buffers included."""

from collections.abc import Callable, Collection
from copy import deepcopy

import torch
from torch import Tensor, nn

from pipeline.runs.sharding import Sharding
from pipeline.training.sharding import divide, gather, local, outline

Averages = Callable[[], dict[str, nn.Module]]  # gives that of every player, whole; all processes have to ask


class Average:
    """`module` is the average; `update` moves it towards the trained weights by 1 - decay.

    With `warmup` the decay is (1 + step) / (10 + step) early on, so that the first steps are not remembered for long.
    Buffers are averaged when they are floating point and copied when they are not. What jumps instead of moving (the
    rows of a codebook that are placed anew) would be averaged with what it has left: a submodule that has such a thing
    has a method `copy_restarted_rows(trained)`, which is called on the average before it moves and copies it.
    A module that is divided among processes has an average that is divided alike.
    """

    def __init__(self, module: nn.Module, decay: float, warmup: bool = True):
        self.decay, self.warmup = decay, warmup
        self.module = deepcopy(module).requires_grad_(False).eval()
        for tensor in state_of(self.module):
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()
        self._outline: nn.Module | None = None
        self._with_restarts = {
            name: part for name, part in self.module.named_modules() if hasattr(part, "copy_restarted_rows")
        }

    def divide(self, sharding: Sharding, device: torch.device, undivided: Collection[str]) -> None:
        """Divide the average among the processes, as the module that it follows is."""
        self._outline = outline(self.module)
        divide(self.module, sharding, device, undivided)

    def whole(self) -> nn.Module:
        """The average with the parts of all processes, each of which has to ask for it."""
        return self.module if self._outline is None else gather(self.module, self._outline)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """After optimiser step number `step` (1 is the first)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        for name, part in self._with_restarts.items():
            part.copy_restarted_rows(module.get_submodule(name))
        floating: tuple[list[Tensor], list[Tensor]] = ([], [])
        for ours, theirs in zip(state_of(self.module), state_of(module), strict=True):
            if ours.is_floating_point():
                floating[0].append(ours)
                floating[1].append(theirs.to(ours.dtype))
            else:
                ours.copy_(theirs)
        if floating[0]:
            torch._foreach_lerp_(*floating, 1 - decay)


def state_of(module: nn.Module) -> list[Tensor]:
    """What this process has of parameters and buffers, as they are now: moving a module replaces its buffers."""
    return [local(tensor) for tensor in [*module.parameters(), *module.buffers()]]
