"""Next-token prediction of codes in segments, which count alike however many tokens they have."""

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec, stack_ids
from pipeline.components import Arguments
from pipeline.draws import Draws
from pipeline.objectives.base import Objective
from pipeline.samplers.autoregression import TokenSampler
from pipeline.samplers.choice import Choice
from pipeline.samplers.original import Original
from pipeline.samplers.request import SamplingRequest


class NextTokenBySegment(Objective):
    """Term `next_token_by_segment`: the sum over segments of the mean cross-entropy, in nats an id.

    Hita (arXiv:2507.02358), whose holistic tokens thus weigh as much as the patches, of which there are more.
    """

    role = "causal"
    discrete = True
    settings = Choice

    @register_to_config
    def __init__(self):
        pass

    @property
    def terms(self) -> tuple[str, ...]:
        return ("next_token_by_segment",)

    def default_steps(self, spec: LatentSpec) -> int:
        return spec.tokens

    def check_sampler(self, steps: int, spec: LatentSpec, settings: Choice) -> None:
        """ValueError where `steps` is not the number of tokens, or a setting is out of range."""
        TokenSampler(settings).check(steps, spec)

    def check_network(self, arguments: Arguments) -> None:
        """ValueError for a network that does not know segments."""
        if not arguments.get("segments"):
            raise ValueError(
                "next_token_by_segment is for networks of segments; set generator.network.kind=segment_transformer, or"
                " generator.objective.kind=next_token"
            )

    def draw(self, code: Code, draws: Draws) -> Draws:
        """Where dropout draws from."""
        return draws

    def loss(
        self, network: nn.Module, code: Code, condition: Condition | None, randomness: Draws | None = None
    ) -> dict[str, Tensor]:
        logits, ids = network(code.ids, condition, dropout=randomness), stack_ids(code.ids)
        counts = [torch.Size(grid).numel() for grid in getattr(network, "module", network).config.segments]
        parts = zip(logits.split(counts, dim=1), ids.split(counts, dim=1))
        # logits [B, n, codebooks, vocab] and ids [B, n, codebooks] of each segment
        means = [F.cross_entropy(of_part.flatten(0, 2).float(), given.flatten()) for of_part, given in parts]
        return {"next_token_by_segment": sum(means)}

    def sample(self, request: SamplingRequest, settings: Choice = Choice()) -> Code:
        """As `NextToken.sample`: one evaluation a token, and one uniform number an id."""
        return TokenSampler(settings).sample(request)

    def regenerate(self, request: SamplingRequest, original: Original, settings: Choice = Choice()) -> Code:
        """The code with about a fraction `preserve` of its tokens fed back; see `TokenSampler.regenerate`."""
        return TokenSampler(settings).regenerate(request, original)
