"""Class information: how much one id says of the class of its image."""

import math

import torch

from pipeline.code import stack_ids
from pipeline.features.summaries import extremes
from pipeline.metrics.base import Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.id_entropy import class_information, entropy_by_class


class ClassInformation(TokenizerMetric):
    """Mutual information of an id and the class of its image, from counts on the training split."""

    quantities = (
        Quantity(
            "class_information",
            "Class information per id",
            "neither",
            "mutual information of an id, at any position, and the class of its image",
            "bits",
        ),
    )
    needs = frozenset({"ids", "labels"})
    order = 420
    group = "Ids"

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        ids, labels = stack_ids(inputs.train.rows["ids"]), inputs.train.rows["labels"]
        where = {"images": f"{len(ids)} of the training split", "uniform": f"{math.log2(inputs.spec.vocab):.4g} bits"}
        within = entropy_by_class(ids, labels)
        names = [f"entropy_in_class_{inputs.class_names[label]}" for label in within]
        details = extremes(torch.tensor(list(within.values())), names)
        value = class_information(ids, labels)
        yield self.quantities[0].measurement(value, where | inputs.train.protocol, details=details)
