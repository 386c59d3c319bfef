"""Class accuracy: whether a judge recognises in samples the classes they were sampled for."""

from torch import Tensor

from pipeline.features.networks import FeatureExtractors
from pipeline.features.passes import PerImage, count
from pipeline.features.summaries import mean
from pipeline.metrics.base import Measurements, Quantity, SampleInputs, SampleMetric


class ClassAccuracy(SampleMetric):
    """Accuracy of a classifier on samples, by the classes they were sampled for, and on real images, by their own."""

    quantities = (
        Quantity(
            "class_accuracy",
            "Class accuracy",
            "higher",
            "fraction of samples that the judge assigns to the class they were sampled for",
            "share",
            headline=True,
        ),
        Quantity(
            "judge_accuracy",
            "Accuracy of the judge",
            "higher",
            "fraction of real images that the judge assigns to their class; it limits class accuracy",
            "share",
        ),
    )
    needs = frozenset({"classifier", "labels"})
    order = 10

    def rows(self, images: Tensor, extractors: FeatureExtractors) -> PerImage:
        return {"guess": extractors.judge(images).argmax(dim=1)}

    def measure(self, inputs: SampleInputs) -> Measurements:
        of_samples, of_judge = self.quantities
        judge = inputs.extractors.described["judge"]
        real = accuracy(inputs.held_out) if inputs.held_out else None
        images = f"{count(inputs.held_out)} real held-out images"
        if "labels" in inputs.samples:
            where = {"judge": judge, "images": f"{count(inputs.samples)} samples", "held_out": images}
            yield of_samples.measurement(accuracy(inputs.samples), where | inputs.protocol, held_out=real)
        if real is None:
            return
        computed = {key: inputs.protocol[key] for key in ("precision", "versions")}
        yield of_judge.measurement(real, {"judge": judge, "images": images} | computed)


def accuracy(rows: PerImage) -> float:
    """Fraction of images whose guess is their label."""
    return mean(rows["guess"] == rows["labels"])
