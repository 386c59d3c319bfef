"""Entropy by position: how evenly the ids at each position of a code are used over images."""

import math
from typing import Any

from pipeline.code import stack_ids
from pipeline.features.summaries import mean
from pipeline.metrics.base import Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.id_entropy import entropy_by_position


class PositionEntropy(TokenizerMetric):
    """Entropy over the images of the training split of the id at one position."""

    quantities = (
        Quantity(
            "position_entropy",
            "Entropy by position",
            "higher",
            "entropy over images of the id at one position, mean over positions",
            "bits",
        ),
    )
    needs = frozenset({"ids"})
    order = 410
    group = "Ids"

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        ids = stack_ids(inputs.train.rows["ids"])
        entropies = entropy_by_position(ids)
        where = {"images": f"{len(ids)} of the training split", "uniform": f"{math.log2(inputs.spec.vocab):.4g} bits"}
        limit = {"limit": f"at most {math.log2(len(ids)):.4g} bits can be seen with so many images"}
        details = {"least": entropies.min().item(), "most": entropies.max().item()}
        protocol = where | inputs.train.protocol | limit
        yield self.quantities[0].measurement(mean(entropies), protocol, details=details)

    def curves(self, inputs: TokenizerInputs) -> dict[str, Any]:
        return {"position_entropy": entropy_by_position(stack_ids(inputs.train.rows["ids"])).tolist()}
