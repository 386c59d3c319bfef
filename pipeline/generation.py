"""The task of training a generator on stored codes."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from pipeline.code import Code
from pipeline.draws import StepDraws
from pipeline.guidance import drop
from pipeline.objectives.base import Objective


class Generation:
    """One player, the network. A batch holds `code`, `condition`, and the posterior's `std` if moments are stored."""

    def __init__(self, network: nn.Module, objective: Objective, weights: dict[str, float]):
        self.players = {"network": network}
        self.network, self.objective, self.weights = network, objective, weights
        self.metrics: dict[str, Tensor] = {}

    def turns(self, batch: Any, draws: StepDraws, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        code = batch.code
        if batch.std is not None:
            code = Code(z=code.z + batch.std * draws.normal("posterior", tuple(code.z.shape[1:])))
        condition = drop(self.network, batch.condition, draws.uniform("class_drop"))
        terms = self.objective.loss(self.players["network"], code, condition, **self.objective.draw(code, draws))
        yield "network", {name: self.weights[name] * term for name, term in terms.items()}
