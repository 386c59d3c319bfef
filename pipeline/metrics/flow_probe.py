"""Linear probe along the flow: how well a linear map predicts the class from codes with noise."""

import torch

from pipeline.features.passes import PerImage
from pipeline.metrics.base import Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.linear_probe import PROTOCOL, probe_accuracy

FLOW_LEVELS = (0.0, 0.25, 0.5, 0.75, 0.9)  # of noise in a code


class FlowProbe(TokenizerMetric):
    """Accuracy of a linear probe on codes at several noise levels of the flow that generators learn.

    As RecTok measures its codes (Shi et al., arXiv:2512.13421).
    """

    quantities = (
        Quantity(
            "flow_probe",
            "Linear probe along the flow",
            "higher",
            "fraction of held-out images whose class a linear map predicts from the noisy code, mean over noise levels",
            "share",
        ),
    )
    needs = frozenset({"continuous", "labels"})
    order = 610
    group = "Meaning"

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        accuracies = flow_accuracies(inputs.train.rows, inputs.held_out.rows)
        where = {"levels": ", ".join(accuracies), "path": "linear", "scale": "as generators see it"}
        value = sum(accuracies.values()) / len(accuracies)
        yield self.quantities[0].measurement(value, where | PROTOCOL | inputs.of_splits, details=accuracies)


def flow_accuracies(train: PerImage, held_out: PerImage) -> dict[str, float]:
    """By level of `FLOW_LEVELS`, the accuracy of a probe on z mixed with `flow_noise` [n, N, C]."""
    accuracies = {}
    for u in FLOW_LEVELS:
        sets = []
        for rows in (train, held_out):
            sets += [torch.lerp(rows["z"], rows["flow_noise"], u).flatten(1), rows["labels"]]
        accuracies[f"{u:g}"] = probe_accuracy(*sets)
    return accuracies
