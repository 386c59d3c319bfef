"""Codebook usage: how many of the codes occur, and how evenly."""

from pipeline.code import LatentSpec
from pipeline.metrics.base import Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.code_usage import LARGEST, measure_usage


class CodeUsage(TokenizerMetric):
    """Usage and perplexity of the codebook over the codes of the training split."""

    quantities = (
        Quantity(
            "code_usage",
            "Codebook usage",
            "higher",
            "fraction of the codes that occur at all, mean over codebooks",
            "share",
            headline=True,
        ),
        Quantity(
            "code_perplexity",
            "Codebook perplexity",
            "higher",
            "exp of the entropy of code frequencies: so many codes, used evenly, have the same entropy",
        ),
    )
    needs = frozenset({"ids"})
    order = 400
    of_held_out = False
    group = "Ids"
    report_group = "Codes"

    @classmethod
    def why_left_out(cls, spec: LatentSpec) -> str | None:
        return f"use of codes: {spec.vocab} codes are too many to count one by one" if spec.vocab > LARGEST else None

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        ids, spec = inputs.train.rows["ids"], inputs.spec
        images = f"{len(ids)} of the training split, as they are"
        protocol = {"images": images, "codes": spec.vocab} | inputs.train.protocol
        for quantity, value in zip(self.quantities, measure_usage(ids, spec)):
            yield quantity.measurement(value, protocol)
