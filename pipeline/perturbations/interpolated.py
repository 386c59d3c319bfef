"""Continuous codes on their way to noise, as flow matching has them."""

from torch import Tensor

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code, LatentSpec
from pipeline.draws import StepDraws
from pipeline.nn.capabilities import Capabilities
from pipeline.nn.noising import interpolate, noise_level
from pipeline.perturbations.base import Annealing, Perturbation, check_continuous, first_images
from pipeline.ranges import Fraction, NotNegative, Positive


class Interpolated(Perturbation):
    """(1 - u) z + u `scale` e with normal e and one u an image: u = s t / (1 + (s - 1) t), t uniform, s the `shift`.

    With shift 1 the levels are uniform, as Send-VAE's (arXiv:2601.05823). RecTok (arXiv:2512.13421) shifts them towards
    noise by s = sqrt(values of a code / 4096), 2.83 there: state `shift_base: 4096`, which multiplies the shift so. It
    is done to the first floor(`fraction` B) images of a batch, at the bottleneck's own scale; annealing multiplies u.
    """

    def __init__(
        self,
        scale: NotNegative = 1.0,
        shift: Positive = 1.0,
        fraction: Fraction = 1.0,
        anneal: Annealing | None = None,
        shift_base: Positive | None = None,
    ):
        self.scale, self.shift, self.fraction, self.anneal, self.shift_base = scale, shift, fraction, anneal, shift_base

    def check(self, spec: LatentSpec, can: Capabilities) -> None:
        check_continuous(spec, "interpolated")

    def perturb(self, neck: Bottleneck, h: Tensor, code: Code, draws: StepDraws, step: int) -> Tensor:
        u = self.factor(step) * noise_level(code.z, draws, "perturbation.level", self.shift, self.shift_base)
        noise = draws.normal("perturbation.noise", tuple(code.z.shape[1:]))
        return interpolate(code.z, noise, u * first_images(self.fraction, draws, u.device), self.scale)
