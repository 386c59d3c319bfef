"""Linear probe: how well a linear map predicts the class of an image from its code."""

from pipeline.metrics.base import Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.linear_probe import PROTOCOL, probe_accuracy


class LinearProbe(TokenizerMetric):
    """Accuracy on held-out images of softmax regression on codes of the training split."""

    quantities = (
        Quantity(
            "linear_probe",
            "Linear probe",
            "higher",
            "fraction of held-out images whose class a linear map predicts from the code",
            "share",
            headline=True,
        ),
    )
    needs = frozenset({"labels"})
    order = 600
    group = "Meaning"

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        train, held_out = inputs.train.rows, inputs.held_out.rows
        sets = (train["z"].flatten(1), train["labels"], held_out["z"].flatten(1), held_out["labels"])
        yield self.quantities[0].measurement(probe_accuracy(*sets), PROTOCOL | inputs.of_splits)
