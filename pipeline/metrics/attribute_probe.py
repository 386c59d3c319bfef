"""Attribute probe: how well linear maps predict the attributes of an image from its code."""

from pipeline.metrics.base import Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.linear_probe import PROTOCOL, have_both, probe_attribute


class AttributeProbe(TokenizerMetric):
    """F1 and accuracy on held-out images of logistic regression for each attribute, the mean over attributes."""

    quantities = (
        Quantity(
            "attribute_f1",
            "Attribute probe, F1",
            "higher",
            "F1 of a linear map that predicts an attribute from the code",
        ),
        Quantity(
            "attribute_accuracy",
            "Attribute probe",
            "higher",
            "fraction of held-out images whose attribute a linear map predicts right",
            "share",
        ),
    )
    needs = frozenset({"attributes"})
    order = 620
    group = "Meaning"

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        """No number where no attribute varies in both splits."""
        train, held_out, names = inputs.train.rows, inputs.held_out.rows, inputs.attribute_names
        scores: dict[str, tuple[float, float]] = {}
        for number, name in enumerate(names):
            has, new = (rows["attributes"][:, number] for rows in (train, held_out))
            if have_both(has, new):
                scores[name] = probe_attribute(train["z"].flatten(1), has, held_out["z"].flatten(1), new)
        if not scores:
            return
        constant = [name for name in names if name not in scores]
        where = {"attributes": f"mean over {len(scores)}"} | PROTOCOL | inputs.of_splits
        where |= {"left_out": f"all images of a split alike: {', '.join(constant)}"} if constant else {}
        for position, quantity in enumerate(self.quantities):
            details = {name: score[position] for name, score in scores.items()}
            yield quantity.measurement(sum(details.values()) / len(details), where, details=details)
