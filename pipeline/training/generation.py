"""The task of training a generator on codes."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pipeline.draws import StepDraws
from pipeline.latents.code_source import BatchEncoder
from pipeline.losses.base import Alignment
from pipeline.objectives.base import Objective
from pipeline.samplers.guidance import drop
from pipeline.training.loss_heads import NetworkWithHeads, detach_heads


class Generation:
    """One player: the network, and with it the heads of the losses that compare its hidden states with a teacher's.

    A batch, as `encoder` encodes it where there is one, holds `code`, `condition`, and the `std` of a posterior where
    codes are moments; for the losses also the stored `features` by term, or the `images`, from which the teachers then
    compute them. The terms are the objective's and those of `losses`, which are by term. `new` names parameters of the
    network that were not trained before.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        weights: dict[str, float],
        losses: Mapping[str, Alignment] | None = None,
        new: Collection[str] = (),
        encoder: BatchEncoder | None = None,
    ):
        self.losses = dict(losses or {})
        self.players: dict[str, nn.Module] = {
            "network": NetworkWithHeads(network, self.losses) if self.losses else network
        }
        self.network, self.objective, self.weights, self.encoder = network, objective, weights, encoder
        self.metrics: dict[str, Tensor] = {}
        self.starts: dict[str, int] = {}
        self.judges, self.compared = (), ()
        self.new = {"network": tuple(f"model.{name}" if self.losses else name for name in new)}

    def beside(self) -> list[nn.Module]:
        return [*self.losses.values(), *([] if self.encoder is None else self.encoder.networks())]

    def turns(self, batch: Any, draws: StepDraws, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        batch = batch if self.encoder is None else self.encoder.encode(batch, draws)
        player, states = self.players["network"], {}
        terms = self.objective_terms(record_heads(player, states) if self.losses else player, batch, draws)
        for term, loss in self.losses.items():
            features = batch.features[term] if term in batch.features else loss.tap(batch.images, loss.grid)
            terms |= loss.compare(states[term], features)
            self.metrics |= loss.metrics
        yield "network", {name: self.weights[name] * term for name, term in terms.items()}

    def held_out_terms(self, averages: Mapping[str, nn.Module], batch: Any, draws: StepDraws) -> dict[str, Tensor]:
        """Those of the objective."""
        network, _ = detach_heads(averages["network"])
        terms = self.objective_terms(network, batch, draws)
        return {name: self.weights[name] * term for name, term in terms.items()}

    def objective_terms(self, network: Callable[..., Any], batch: Any, draws: StepDraws) -> dict[str, Tensor]:
        """The unweighted terms of the objective, of a `network` as it calls it."""
        code = batch.code
        if batch.std is not None:
            code = replace(code, z=code.z + batch.std * draws.normal("posterior", tuple(code.z.shape[1:])))
        condition = drop(self.network, batch.condition, draws.uniform("condition_drop"))
        return self.objective.loss(network, code, condition, self.objective.draw(code, draws))


def record_heads(player: NetworkWithHeads, states: dict[str, Tensor]) -> Callable[..., Tensor]:
    """The network as an objective calls it; the outputs of the heads are put into `states`, by term."""

    def predict(*inputs: Any) -> Tensor:
        prediction, outputs = player(*inputs)
        states.update(outputs)
        return prediction

    return predict
