"""Next-token prediction: the network learns each token of a code from those before it, row by row."""

import torch.nn.functional as F
from diffusers import SchedulerMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import Draws
from pipeline.objectives.base import Objective, OnStep
from pipeline.samplers.autoregression import TokenSampler
from pipeline.samplers.choice import Choice
from pipeline.samplers.guidance import Guidance


class NextToken(Objective):
    """Term `next_token`: cross-entropy in nats an id, as in LlamaGen (Sun et al., arXiv:2406.06525)."""

    role = "causal"
    discrete = True

    @register_to_config
    def __init__(self):
        pass

    @property
    def terms(self) -> tuple[str, ...]:
        return ("next_token",)

    def default_steps(self, spec: LatentSpec) -> int:
        return spec.tokens

    def check_sampler(self, steps: int, spec: LatentSpec, **choice) -> None:
        """ValueError where `steps` is not the number of tokens, or a setting is out of range."""
        TokenSampler(Choice(**choice)).check(steps, spec.tokens, spec.vocab)

    def draw(self, code: Code, draws: Draws) -> dict[str, Draws]:
        """Where dropout draws from."""
        return {"dropout": draws}

    def loss(
        self, network: nn.Module, code: Code, condition: Condition | None, dropout: Draws | None = None
    ) -> dict[str, Tensor]:
        logits = network(code.ids, condition, dropout=dropout)  # [B, N, codebooks, vocab]
        return {"next_token": F.cross_entropy(logits.flatten(0, 2).float(), code.ids.flatten())}

    def sample(
        self,
        network: nn.Module,
        condition: Condition | None,
        spec: LatentSpec,
        draws: Draws,
        steps: int,
        guidance: Guidance = Guidance(),
        on_step: OnStep | None = None,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Code:
        """A code in spec.tokens evaluations, chosen by one uniform number an id, `draws.uniform("choice", [N, K])`.

        Args:
            temperature: divides the logits; 0 takes the likeliest id.
            top_k: leaves so many of the likeliest ids; 0 leaves all.
            top_p: leaves the likeliest ids that have this share together.
            on_step: (i, 1 - (i + 1) / N, ids) after each token; it may answer ids with that token changed.
        """
        sampler = TokenSampler(Choice(temperature, top_k, top_p), guidance)
        sampler.check(steps, spec.tokens, spec.vocab)
        return sampler.sample(network, condition, spec, draws, on_step)

    def regenerate(
        self,
        network: nn.Module,
        code: Code,
        condition: Condition | None,
        preserve: float,
        draws: Draws,
        steps: int,
        guidance: Guidance = Guidance(),
        **choice,
    ) -> Code:
        """The code with a share of about `preserve` of its tokens kept and fed back; see `TokenSampler.regenerate`.

        `choice`: the settings of `sample`.
        """
        sampler = TokenSampler(Choice(**choice), guidance)
        sampler.check(steps, code.ids.shape[1], network.config.vocab)
        return sampler.regenerate(network, code, condition, preserve, draws)
