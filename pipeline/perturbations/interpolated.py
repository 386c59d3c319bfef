"""Continuous codes on their way to noise, as flow matching has them."""

from torch import Tensor

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code, LatentSpec
from pipeline.draws import StepDraws
from pipeline.perturbations.base import Annealing, Perturbation, check_continuous, check_share, first
from pipeline.tokenizers.base import Tokenizer


class Interpolated(Perturbation):
    """(1 - u) z + u `scale` e with normal e and one u an image: u = s t / (1 + (s - 1) t), t uniform, s the `shift`.

    With shift 1 the levels are uniform, as Send-VAE's (arXiv:2601.05823). RecTok (arXiv:2512.13421) shifts them towards
    noise by s = sqrt(values of a code / 4096), 2.83 there. It is done to the first floor(`share` B) images of a batch,
    at the bottleneck's own scale; annealing multiplies u.
    """

    def __init__(self, scale: float = 1.0, shift: float = 1.0, share: float = 1.0, anneal: Annealing | None = None):
        if scale < 0:
            raise ValueError(f"scale {scale:g} is below 0; 1 is the scale of normal noise")
        if shift <= 0:
            raise ValueError(f"shift {shift:g} is not above 0; 1 leaves the levels uniform, more makes them noisier")
        check_share(share)
        self.scale, self.shift, self.share, self.anneal = scale, shift, share, anneal

    def check(self, tokenizer: type[Tokenizer], spec: LatentSpec) -> None:
        check_continuous(spec, "interpolated")

    def perturbed(self, neck: Bottleneck, h: Tensor, code: Code, draws: StepDraws, step: int) -> Tensor:
        t = draws.uniform("perturbation.level", (1, 1))
        noise = draws.normal("perturbation.noise", tuple(code.z.shape[1:])).to(code.z)
        u = self.factor(step) * self.shift * t / (1 + (self.shift - 1) * t)
        u = (u * first(self.share, draws, u.device)).to(code.z)
        return (1 - u) * code.z + u * self.scale * noise
