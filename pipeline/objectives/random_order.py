"""Randomised autoregression: next-token prediction in an order drawn anew for every image, and row by row at last."""

from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec, stack_ids
from pipeline.components import Arguments
from pipeline.draws import Draws, StepDraws
from pipeline.objectives.base import Objective, OnStep
from pipeline.samplers.autoregression import TokenSampler, random_order, row_by_row
from pipeline.samplers.choice import Choice
from pipeline.samplers.guidance import Guidance

ORDERS = {"row_by_row": row_by_row, "random": random_order}


class RandomOrder(Objective):
    """Term `random_order`: cross-entropy in nats an id (RAR, Yu et al., arXiv:2411.00776).

    Each image is permuted with probability 1 until training step `anneal_start`, which falls linearly to 0 at step
    `anneal_end`; RAR anneals from half of its steps to three quarters. The network is told the place of the token that
    it predicts (`target_positions`).

    Raises ValueError when annealing ends before it starts.
    """

    role = "causal"
    discrete = True

    @register_to_config
    def __init__(self, anneal_start: int, anneal_end: int):
        if not 0 <= anneal_start <= anneal_end:
            raise ValueError(f"anneal_start {anneal_start} is a step before anneal_end {anneal_end}, or the same one")

    @property
    def terms(self) -> tuple[str, ...]:
        return ("random_order",)

    def default_steps(self, spec: LatentSpec) -> int:
        return spec.tokens

    def check_sampler(self, steps: int, spec: LatentSpec, order: str = "row_by_row", **choice) -> None:
        """ValueError where `steps` is not the number of tokens, or a setting is out of range."""
        TokenSampler(Choice(**choice)).check(steps, spec.tokens, spec.vocab)

    def check_network(self, arguments: Arguments) -> None:
        """ValueError for a network that is not told which place it predicts."""
        if not arguments.get("target_positions"):
            raise ValueError(
                "in a random order a network must be told which place it predicts;"
                " set generator.network.target_positions=true"
            )

    def share_permuted(self, step: int) -> float:
        """The probability that an image of this training step is permuted."""
        start, end = self.config.anneal_start, self.config.anneal_end
        return float(step < start) if start == end else min(1.0, max(0.0, (end - step) / (end - start)))

    def draw(self, code: Code, draws: StepDraws) -> dict[str, Tensor | Draws]:
        """order [B, N]: the place of the j-th token, counted row by row; and where dropout draws from."""
        tokens = code.ids.shape[1]
        permuted = draws.uniform("permuted") < self.share_permuted(draws.step)
        rows = torch.arange(tokens, device=permuted.device)
        return {"order": torch.where(permuted[:, None], random_order(draws, tokens), rows), "dropout": draws}

    def loss(
        self,
        network: nn.Module,
        code: Code,
        condition: Condition | None,
        order: Tensor,
        dropout: Draws | None = None,
    ) -> dict[str, Tensor]:
        ids = stack_ids(code.ids)
        ids = ids.gather(1, order[..., None].expand_as(ids))  # in the order in which they are predicted
        logits = network(ids, condition, order=order, dropout=dropout)  # [B, N, codebooks, vocab]
        return {"random_order": F.cross_entropy(logits.flatten(0, 2).float(), ids.flatten())}

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
        order: Literal["row_by_row", "random"] = "row_by_row",
    ) -> Code:
        """A code in spec.tokens evaluations, chosen by one uniform number an id, `draws.uniform("choice", [N, K])`.

        Args:
            temperature: divides the logits; 0 takes the likeliest id.
            top_k: leaves so many of the likeliest ids; 0 leaves all.
            top_p: leaves the likeliest ids that have this share together.
            order: of the tokens; a network whose training went on to row by row is best sampled so.
            on_step: (i, 1 - (i + 1) / N, ids) after each token; it may answer ids with that token changed.
        """
        sampler = TokenSampler(Choice(temperature, top_k, top_p), guidance, ORDERS[order])
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
        *,
        order: Literal["row_by_row", "random"] = "row_by_row",
        **choice,
    ) -> Code:
        """The code with a share of about `preserve` of its tokens kept and fed back; see `TokenSampler.regenerate`.

        `order` and `choice`: the settings of `sample`.
        """
        sampler = TokenSampler(Choice(**choice), guidance, ORDERS[order])
        sampler.check(steps, code.ids.shape[1], network.config.vocab)
        return sampler.regenerate(network, code, condition, preserve, draws)
