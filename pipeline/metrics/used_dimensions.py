"""Used dimensions: how many channels of a code vary on their own."""

import torch
from torch import Tensor

from pipeline.metrics.base import Measurements, Quantity, TokenizerInputs, TokenizerMetric


class UsedDimensions(TokenizerMetric):
    """Participation ratio of the eigenvalues of the channels' covariance."""

    quantities = (
        Quantity(
            "used_dimensions",
            "Effective channels",
            "neither",
            "participation ratio of the channels' covariance: (sum of eigenvalues)^2 / sum of their squares",
        ),
    )
    order = 710
    group = "Latents"

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        z = inputs.held_out.rows["z"]
        where = {"scale": "as generators see it", "channels": z.shape[2]} | inputs.of_images
        yield self.quantities[0].measurement(used_dimensions(z), where)


def used_dimensions(z: Tensor) -> float:
    """How many channels of [B, N, C] vary on their own: (sum of v)^2 / sum of v^2, v the covariance's eigenvalues.

    It is C where all channels vary alike and independently, 1 where they differ by factors, 0 where none varies.
    """
    covariance = torch.atleast_2d(torch.cov(z.double().flatten(0, 1).T))
    values = torch.linalg.eigvalsh(covariance).clamp(min=0)
    return (values.sum().square() / values.square().sum()).item() if values.any() else 0.0
