"""Next-token prediction: the network learns each token of a code from those before it, row by row."""

from typing import NamedTuple

import torch.nn.functional as F
from diffusers import SchedulerMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import Draws
from pipeline.nn.row_ends import through_end
from pipeline.objectives.base import Objective
from pipeline.ranges import FractionBelowOne
from pipeline.samplers.autoregression import TokenSampler
from pipeline.samplers.choice import Choice
from pipeline.samplers.original import Original
from pipeline.samplers.request import SamplingRequest


class NextTokenRandomness(NamedTuple):
    """The random arguments of the loss."""

    dropout: Draws | None = None  # where dropout draws from


class NextToken(Objective):
    """Term `next_token`: cross-entropy in nats an id, as in LlamaGen (Sun et al., arXiv:2406.06525).

    A share `smoothing` of the target is spread evenly over all ids, as in DiGIT (arXiv:2410.12490), where it is 0.1. In
    rows that end, what follows the end is known, and counts as predicted: with N places a loss is 1 / N of a row's.
    """

    role = "causal"
    discrete = True
    ends = True
    settings = Choice

    @register_to_config
    def __init__(self, smoothing: FractionBelowOne = 0.0):
        pass

    @property
    def terms(self) -> tuple[str, ...]:
        return ("next_token",)

    def default_steps(self, spec: LatentSpec) -> int:
        return spec.tokens

    def check_sampler(self, steps: int, spec: LatentSpec, settings: Choice) -> None:
        """ValueError where `steps` is not the number of tokens, or a setting is out of range."""
        TokenSampler(settings).check(steps, spec)

    def draw(self, code: Code, draws: Draws) -> NextTokenRandomness:
        return NextTokenRandomness(draws)

    def loss(
        self,
        network: nn.Module,
        code: Code,
        condition: Condition | None,
        randomness: NextTokenRandomness = NextTokenRandomness(),
    ) -> dict[str, Tensor]:
        logits = network(code.ids, condition, dropout=randomness.dropout)  # [B, N, codebooks, vocab]
        logits, ids, smoothing = logits.flatten(0, 2).float(), code.ids.flatten(), self.config.smoothing
        config = getattr(network, "module", network).config
        if not config.get("ends"):
            return {"next_token": F.cross_entropy(logits, ids, label_smoothing=smoothing)}
        losses = F.cross_entropy(logits, ids, label_smoothing=smoothing, reduction="none")
        return {"next_token": losses.where(through_end(code.ids, config.vocab - 1).flatten(), 0.0).mean()}

    def sample(self, request: SamplingRequest, settings: Choice = Choice()) -> Code:
        """A code in spec.tokens evaluations, chosen by one uniform number per id, `draws.uniform("choice", [N, K])`.

        `on_step` is called as (i, 1 - (i + 1) / N, ids) after each token; it may return ids with that token changed.
        """
        return TokenSampler(settings).sample(request)

    def regenerate(self, request: SamplingRequest, original: Original, settings: Choice = Choice()) -> Code:
        """The code with about a fraction `preserve` of its tokens fed back; see `TokenSampler.regenerate`."""
        return TokenSampler(settings).regenerate(request, original)
