"""Noise on top of continuous codes."""

from torch import Tensor

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code, LatentSpec
from pipeline.draws import StepDraws
from pipeline.nn.capabilities import Capabilities
from pipeline.perturbations.base import Annealing, Perturbation, check_continuous, first_images
from pipeline.ranges import Fraction, NotNegative


class Gaussian(Perturbation):
    """z + s e with normal e and, for each image, one s that is uniform in [0, `scale`).

    Zheng et al., RAE, arXiv:2510.11690 (there scale 0.8), at the bottleneck's own scale. It is done to the first
    floor(`fraction` B) images of a batch; annealing multiplies the scale.
    """

    def __init__(self, scale: NotNegative, fraction: Fraction = 1.0, anneal: Annealing | None = None):
        self.scale, self.fraction, self.anneal = scale, fraction, anneal

    def check(self, spec: LatentSpec, can: Capabilities) -> None:
        check_continuous(spec, "gaussian")

    def perturb(self, neck: Bottleneck, h: Tensor, code: Code, draws: StepDraws, step: int) -> Tensor:
        noise = draws.normal("perturbation.noise", tuple(code.z.shape[1:]))
        scale = self.factor(step) * self.scale * draws.uniform("perturbation.level", (1, 1))
        return code.z + (scale * first_images(self.fraction, draws, scale.device) * noise).to(code.z)
