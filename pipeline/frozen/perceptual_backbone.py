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

    def load(self, networks: FrozenNetworks) -> nn.Module:
        files = [locate(name, self.recipe.weights) for name in LpipsVgg.FILES]
        return LpipsVgg.load(*files) if all(files) else networks.stand_in()
