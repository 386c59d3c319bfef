"""Codebook usage: how many of the codes occur, and how evenly, in all and in every stream of ids."""

from torch import Tensor

from pipeline.code import LatentSpec, stack_ids
from pipeline.metrics.base import Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.code_usage import LARGEST, count_by_codebook, count_ids, measure_usage, usage_and_perplexity


class CodeUsage(TokenizerMetric):
    """Usage and perplexity of the codebook over the codes of the training split.

    Where there are several codebooks, of a token or of segments, or a code has levels, the details have each of them: a
    mean does not tell a codebook that nothing uses.
    """

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
        protocol = {"images": images, "codes": spec.codes} | inputs.train.protocol
        streams = {name: usage_and_perplexity(counts) for name, counts in count_streams(ids, spec).items()}
        for place, (quantity, value) in enumerate(zip(self.quantities, measure_usage(ids, spec))):
            details = {name: values[place].item() for name, values in streams.items()}
            yield quantity.measurement(value, protocol, details=details)


def count_streams(ids: Tensor, spec: LatentSpec) -> dict[str, Tensor]:
    """How often each code is taken in each codebook [1, codes] and each level [codebooks, vocab], by name.

    Nothing of codebooks where there is one, and nothing of levels where there are none.
    """
    books = count_by_codebook(ids, spec).split(1)
    levels = stack_ids(ids).split(list(spec.levels), dim=1) if spec.levels else ()
    streams = {"codebook": books if len(books) > 1 else (), "level": [count_ids(part, spec.vocab) for part in levels]}
    return {f"{kind}_{place}": counts for kind, parts in streams.items() for place, counts in enumerate(parts, 1)}
