"""The frozen network whose features the perceptual loss compares: LPIPS-VGG where its weights are, else a stand-in."""

from torch import nn

from pipeline.frozen.base import FrozenInput
from pipeline.frozen.networks import FrozenNetworks
from pipeline.teachers.lpips_vgg import LpipsVgg
from pipeline.vision.weights import locate


class PerceptualBackbone(FrozenInput):
    """LPIPS-VGG when its two files are found by the rule of `pipeline.vision.weights`, else a small classifier.

    The classifier is named in every number that comes of it.
    """

    @property
    def missing(self) -> list[str]:
        """The names of the files that are not on this machine."""
        return [name for name in LpipsVgg.FILES if locate(name, self.recipe.weights.files) is None]

    @property
    def replaceable(self) -> bool:
        return True

    def origin(self) -> str:
        if self.missing and self.recipe.weights.require:
            return f"LPIPS-VGG, missing {' and '.join(self.missing)}"
        if self.missing:
            return (
                "a small classifier of these images, which is trained first, for the weights"
                f" {' and '.join(self.missing)} are not on this machine"
            )
        return f"LPIPS-VGG, {' and '.join(str(locate(name, self.recipe.weights.files)) for name in LpipsVgg.FILES)}"

    def check(self) -> None:
        smallest = LpipsVgg.SMALLEST
        if min(self.recipe.data.sides) < smallest and (self.recipe.weights.require or not self.missing):
            raise ValueError(
                f"LPIPS needs images of {smallest} pixels per side or more; raise data.size, or leave it out"
            )

    def load(self, networks: FrozenNetworks) -> nn.Module:
        weights = self.recipe.weights
        if self.missing and not weights.require:
            return networks.stand_in()
        return networks.lpips()
