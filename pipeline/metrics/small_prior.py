"""Small prior: how easily a small generator learns codes in a short training of fixed length."""

import math
from typing import Any

from pipeline.code import LatentSpec, stack_ids
from pipeline.features.summaries import mean
from pipeline.metrics.base import Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.id_entropy import entropy_by_position

LARGEST = 2**18  # codes, beyond which the table of the small network is no longer small
NO_STRUCTURE = math.pi / 2  # flow loss of the best prediction of independent standard normal values: the mean of
# 1 / ((1 - u)^2 + u^2) over u


class SmallPrior(TokenizerMetric):
    """Loss of a small generator on held-out codes: squared error of a velocity, or bits per id."""

    quantities = (
        Quantity(
            "prior_flow",
            "Small prior, flow loss",
            "lower",
            "velocity error of a small flow transformer on held-out codes after a short training",
        ),
        Quantity(
            "prior_bits",
            "Small prior, bits per id",
            "lower",
            "cross-entropy of a small causal transformer on held-out codes after a short training",
            "bits",
        ),
    )
    needs = frozenset({"prior"})
    order = 800
    group = "How learnable"

    @classmethod
    def why_left_out(cls, spec: LatentSpec) -> str | None:
        return f"small prior: {spec.vocab} codes are too many" if spec.vocab > LARGEST else None

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        flow, of_ids = self.quantities
        loss, spec = inputs.prior.loss, inputs.spec
        where = {"prior": inputs.prior.described} | inputs.of_images
        if not spec.vocab:
            details = {"independent_standard_normal_values": NO_STRUCTURE, "share_of_that": loss / NO_STRUCTURE}
            yield flow.measurement(loss, where, details=details)
            return
        bits, uniform = loss / math.log(2), math.log2(spec.vocab)
        details = {
            "uniform": uniform,
            "entropy_by_position": mean(entropy_by_position(stack_ids(inputs.train.rows["ids"]))),
            "share_of_uniform": bits / uniform,
            "bits_a_pixel": bits * spec.tokens * spec.codebooks / math.prod(inputs.image_shape[1:]),
        }
        yield of_ids.measurement(bits, where, details=details)

    def curves(self, inputs: TokenizerInputs) -> dict[str, Any]:
        return {"prior": {str(step): loss for step, loss in inputs.prior.course.items()}}
