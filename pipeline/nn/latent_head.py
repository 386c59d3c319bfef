"""The head of a loss on codes: the z that it reads, clean, noised or perturbed as for the decoder, and its net."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from pipeline.draws import Draws
from pipeline.nn.feature_head import FeatureHead
from pipeline.nn.noising import interpolate, noise_level
from pipeline.nn.processes import sum_with_gradient

Source = Literal["clean", "noised", "perturbed"]


class LatentHead(nn.Module):
    """z [B, N, C] to features [B, N, outputs] by `net`.

    `source` is the code itself ("clean"), (1 - u) z + u e with a level u of its own per image ("noised"), or the
    decoder's input, as a perturbation changed it ("perturbed"). With `standardize` each channel of z is first brought
    to mean 0 and std 1 over all images and positions of the global batch, as by a batch norm without weights.
    """

    def __init__(
        self,
        net: FeatureHead,
        source: Source = "clean",
        shift: float = 1.0,
        shift_base: float | None = None,
        standardize: bool = False,
    ):
        super().__init__()
        self.net, self.source, self.shift, self.shift_base = net, source, shift, shift_base
        self.standardize = standardize

    def forward(
        self, z: Tensor, perturbed: Tensor | None, features: Mapping[str, Tensor], draws: Draws | None
    ) -> Tensor:
        """`perturbed` is the decoder's input, None where that is z itself; `features` may hold `kept` [B, N] bool."""
        if self.source == "perturbed" and perturbed is not None:
            z = perturbed
        if self.standardize:
            z = standardize(z)
        if self.source == "noised" and draws is not None:
            u = noise_level(z, draws, "alignment.level", self.shift, self.shift_base)
            z = interpolate(z, draws.normal("alignment.noise", tuple(z.shape[1:])), u)
        return self.net(z, features.get("kept"))


def standardize(z: Tensor, epsilon: float = 1e-4) -> Tensor:
    """z [B, N, C] with mean 0 and std 1 in each channel, over the global batch; gradients are of the whole, too."""
    rows = z.float().flatten(0, 1)
    count = sum_with_gradient(rows.new_tensor(float(len(rows))))
    centred = rows - sum_with_gradient(rows.sum(0)) / count
    variance = sum_with_gradient(centred.square().sum(0)) / count
    return (centred / (variance + epsilon).sqrt()).view(z.shape).to(z.dtype)
