"""Row length: how many tokens images have, where each has as many as it needs."""

import torch

from pipeline.metrics.base import Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.row_ends import before_end

SHARES = {"tenth": 0.1, "median": 0.5, "nine_tenths": 0.9}  # quantiles of the details


class RowLength(TokenizerMetric):
    """Tokens of the images of the training split before the end of their rows."""

    quantities = (
        Quantity(
            "row_length",
            "Row length",
            "neither",
            "tokens of an image before the end of its row, mean over images",
            headline=True,
        ),
    )
    needs = frozenset({"ids", "ends"})
    order = 405
    of_held_out = False
    group = "Ids"
    report_group = "Codes"

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        ids = inputs.train.rows["ids"]
        lengths = before_end(ids, inputs.spec.codes).sum(dim=1).double()
        details = {name: torch.quantile(lengths, share).item() for name, share in SHARES.items()}
        spread = {"least": lengths.min(), "most": lengths.max(), "std": lengths.std(correction=0)}
        details |= {name: value.item() for name, value in spread.items()}
        where = {"images": f"{len(ids)} of the training split", "places": inputs.spec.tokens} | inputs.train.protocol
        yield self.quantities[0].measurement(lengths.mean().item(), where, details=details)
