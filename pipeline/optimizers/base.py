"""What every optimiser promises: the update of one player's trained parameters, with the decay that a recipe states."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from pipeline.nn.devices import has_fused_updates
from pipeline.ranges import FractionBelowOne, Positive, RangedArguments

Betas = tuple[FractionBelowOne, FractionBelowOne]  # decay per step of the means of the gradient and of its square


@dataclass(frozen=True)
class Grouping:
    """How the parameters of a player are grouped: by their weight decay, and by the name of their rate.

    Matrices and kernels decay, but not those whose name holds one of `undecayed`. `rates` has the name of a rate by
    that of a parameter, of those which do not learn at the player's own.
    """

    decay: float = 0.0
    undecayed: tuple[str, ...] = ()
    rates: Mapping[str, str] = field(default_factory=dict)

    def decay_of(self, name: str, parameter: nn.Parameter) -> float:
        """That of one parameter."""
        spared = parameter.ndim <= 1 or any(part in name for part in self.undecayed)
        return 0.0 if spared else self.decay


class Optimizer(RangedArguments, ABC):
    """The constructor's arguments are what a recipe states; `build` makes the optimiser of a player by them.

    Its rate is set before every step, in each of its groups: that of the name at `rate` in the group, else the
    player's. Its state is tensors, or whole numbers, by parameter, so that a checkpoint holds it exactly.
    """

    updates_parts: bool = True  # can update parameters of which each process has a part
    bytes_per_parameter: float = 8  # of what it keeps beside a weight and its gradient; two float32 of Adam's

    @classmethod
    def check_machine(cls) -> None:
        """ValueError where it needs what this machine has not."""

    @abstractmethod
    def build(self, player: nn.Module, grouping: Grouping) -> torch.optim.Optimizer:
        """The optimiser of all parameters of the player that need a gradient."""


def trained(player: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a player that need a gradient, by name."""
    return ((name, parameter) for name, parameter in player.named_parameters() if parameter.requires_grad)


def groups_of(parameters: Iterable[tuple[str, nn.Parameter]], grouping: Grouping) -> list[dict[str, Any]]:
    """The parameters as groups of an optimiser: by decay and rate, and those divided among processes apart."""
    groups: dict[tuple[float, str | None, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        alike = grouping.decay_of(name, parameter), grouping.rates.get(name), isinstance(parameter, DTensor)
        groups.setdefault(alike, []).append(parameter)
    return [{"params": group, "weight_decay": decay, "rate": rate} for (decay, rate, _), group in groups.items()]


def fused(player: nn.Module) -> bool | None:
    """Whether one kernel updates all parameters of the player; None leaves to torch how it does where it has none."""
    return True if all(has_fused_updates(parameter.device) for _, parameter in trained(player)) else None


class OfMeans(Optimizer):
    """One that moves by running means of the gradient and of its square; `rule` is torch's class of it."""

    rule: type[torch.optim.Optimizer]

    def __init__(self, betas: Betas = (0.9, 0.95), epsilon: Positive = 1e-8):
        self.betas, self.epsilon = tuple(betas), epsilon

    def build(self, player: nn.Module, grouping: Grouping) -> torch.optim.Optimizer:
        groups = groups_of(trained(player), grouping)
        return self.rule(groups, lr=0.0, betas=self.betas, eps=self.epsilon, fused=fused(player))
