"""Randomised autoregression: next-token prediction in an order drawn anew for every image, and row by row at last."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec, stack_ids
from pipeline.components import Arguments
from pipeline.draws import Draws, StepDraws
from pipeline.objectives.base import Objective
from pipeline.ranges import Whole
from pipeline.samplers.autoregression import TokenSampler, random_order, row_by_row
from pipeline.samplers.choice import Choice
from pipeline.samplers.original import Original
from pipeline.samplers.request import SamplingRequest
from pipeline.validation import SettingError

ORDERS = {"row_by_row": row_by_row, "random": random_order}


@dataclass(frozen=True)
class OrderedChoice(Choice):
    """How an id is chosen, and in which order."""

    order: Literal["row_by_row", "random"] = "row_by_row"  # best row by row after training that ended row by row


class OrderRandomness(NamedTuple):
    """The random arguments of the loss."""

    order: Tensor  # [B, N] the position of the j-th token, counted row by row
    dropout: Draws | None = None  # where dropout draws from


class RandomOrder(Objective):
    """Term `random_order`: cross-entropy in nats an id (RAR, Yu et al., arXiv:2411.00776).

    Each image is permuted with probability 1 until training step `anneal_start`, which falls linearly to 0 at step
    `anneal_end`; RAR anneals from half of its steps to three quarters. The network is told the place of the token that
    it predicts (`target_positions`).

    Raises ValueError when annealing ends before it starts.
    """

    role = "causal"
    discrete = True
    settings = OrderedChoice

    @register_to_config
    def __init__(self, anneal_start: Whole, anneal_end: Whole):
        if anneal_start > anneal_end:
            raise SettingError("anneal_end", f" is {anneal_end}, and anneal_start is {anneal_start}; give that or more")

    @property
    def terms(self) -> tuple[str, ...]:
        return ("random_order",)

    def default_steps(self, spec: LatentSpec) -> int:
        return spec.tokens

    def check_sampler(self, steps: int, spec: LatentSpec, settings: OrderedChoice) -> None:
        """ValueError where `steps` is not the number of tokens, or a setting is out of range."""
        TokenSampler(settings).check(steps, spec)

    def check_network(self, arguments: Arguments) -> None:
        """ValueError for a network that is not told which place it predicts."""
        if not arguments.get("target_positions"):
            raise ValueError(
                "in a random order a network must be told which place it predicts;"
                " set generator.network.target_positions=true"
            )

    def fraction_permuted(self, step: int) -> float:
        """The probability that an image of this training step is permuted."""
        start, end = self.config.anneal_start, self.config.anneal_end
        return float(step < start) if start == end else min(1.0, max(0.0, (end - step) / (end - start)))

    def draw(self, code: Code, draws: StepDraws) -> OrderRandomness:
        tokens = code.ids.shape[1]
        permuted = draws.uniform("permuted") < self.fraction_permuted(draws.step)
        rows = torch.arange(tokens, device=permuted.device)
        return OrderRandomness(torch.where(permuted[:, None], random_order(draws, tokens), rows), draws)

    def loss(
        self, network: nn.Module, code: Code, condition: Condition | None, randomness: OrderRandomness
    ) -> dict[str, Tensor]:
        ids, (order, dropout) = stack_ids(code.ids), randomness
        ids = ids.gather(1, order[..., None].expand_as(ids))  # in the order in which they are predicted
        logits = network(ids, condition, order=order, dropout=dropout)  # [B, N, codebooks, vocab]
        return {"random_order": F.cross_entropy(logits.flatten(0, 2).float(), ids.flatten())}

    def sample(self, request: SamplingRequest, settings: OrderedChoice = OrderedChoice()) -> Code:
        """A code in spec.tokens evaluations, chosen by one uniform number per id, `draws.uniform("choice", [N, K])`.

        `on_step` is called as (i, 1 - (i + 1) / N, ids) after each token; it may return ids with that token changed.
        """
        return TokenSampler(settings, ORDERS[settings.order]).sample(request)

    def regenerate(
        self, request: SamplingRequest, original: Original, settings: OrderedChoice = OrderedChoice()
    ) -> Code:
        """The code with about a fraction `preserve` of its tokens fed back; see `TokenSampler.regenerate`."""
        return TokenSampler(settings, ORDERS[settings.order]).regenerate(request, original)
