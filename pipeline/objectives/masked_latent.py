"""Masked continuous tokens: a head learns the distribution of each from what the network makes of the known ones."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, NamedTuple

import torch
from diffusers import SchedulerMixin  # noqa: F401  diffusers looks for it in the component's own module when loading
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import Node, build
from pipeline.draws import Draws
from pipeline.nn.tokens import take_places
from pipeline.objectives.base import Objective
from pipeline.ranges import Count, FractionBelowOne, Positive
from pipeline.samplers.guidance import NOTHING_TO_GUIDE, WEAK_OR_NEGATIVE, Guidance, opposite
from pipeline.samplers.levels import reported
from pipeline.samplers.original import Original
from pipeline.samplers.request import SamplingRequest
from pipeline.samplers.token_heads import (
    GivenState,
    HeadSampling,
    LatentUnmasking,
    Patching,
    PlaceDraws,
    RowDraws,
    states_of,
)
from pipeline.samplers.unmasking import lowest, mask_rate, masked_anew, masked_counts
from pipeline.validation import SettingError


class MaskedLatentRandomness(NamedTuple):
    """The random arguments of the loss."""

    rate: float  # of masked tokens, the same for all images of a step
    draws: Draws  # of the order of tokens, of the head's times and noise, and of dropout


class MaskedLatent(Objective):
    """The terms of `head`, means over the masked tokens (MAR, Li et al., arXiv:2406.11838).

    The head is an objective of its own, which trains a denoiser of single tokens: with `gaussian_diffusion` the terms
    `mse` and `vb`, with `flow_matching` the term `flow`.

    Args:
        head: the objective of a single token; by default that of improved DDPM on a cosine schedule, as in MAR.
        schedule: of the share of tokens that is masked, drawn once a step: normal about 1 with `spread`, cut off at
            `least` and 1, or a law of `mask_rate` at a uniform number.
        copies: of every masked token, each with a time and noise of its own: diffusion_batch_mul.
    """

    role = "masked_latent"
    settings = LatentUnmasking
    autoguided = True

    @register_to_config
    def __init__(
        self,
        head: Node = {"kind": "gaussian_diffusion", "beta_schedule": "squaredcos_cap_v2"},  # noqa: B006  saved as JSON
        schedule: Literal["truncated_normal", "arccos", "cosine", "linear"] = "truncated_normal",
        least: FractionBelowOne = 0.7,
        spread: Positive = 0.25,
        copies: Count = 4,
    ):
        self.head: Objective = build("objectives", head)
        if self.head.role != "denoiser" or self.head.discrete or self.head.class_token:
            raise SettingError("head", f": {head['kind']} denoises no single tokens; take gaussian_diffusion")

    @property
    def outputs(self) -> int:
        return self.head.outputs

    @property
    def terms(self) -> tuple[str, ...]:
        return self.head.terms

    def default_steps(self, spec: LatentSpec) -> int:
        return min(64, spec.tokens)

    def setting_names(self) -> list[str]:
        return [*(field.name for field in fields(self.settings)), *self.head.setting_names()]

    def read_settings(self, settings: Mapping[str, Any], where: str = "") -> HeadSampling:
        names = {field.name for field in fields(self.settings)}
        own = {name: value for name, value in settings.items() if name in names}
        head = {name: value for name, value in settings.items() if name not in names}
        return HeadSampling(super().read_settings(own, where), self.head.read_settings(head, where))

    def check_sampler(self, steps: int, spec: LatentSpec, settings: HeadSampling) -> None:
        """ValueError where these settings, or this number of steps, do not fit the codes or the head."""
        settings.own.validate(steps, spec)
        self.head.check_sampler(settings.own.head_steps, LatentSpec((1,), spec.dim), settings.head)

    def check_codes(self, spec: LatentSpec) -> None:
        self.head.check_codes(LatentSpec((1,), spec.dim))

    def draw(self, code: Code, draws: Draws) -> MaskedLatentRandomness:
        uniform = draws.uniform_of_all("mask_rate")[0]
        if self.config.schedule != "truncated_normal":
            return MaskedLatentRandomness(mask_rate(self.config.schedule, uniform).item(), draws)
        below = torch.special.ndtr(torch.tensor((self.config.least - 1) / self.config.spread, dtype=torch.float64))
        quantile = torch.special.ndtri(below + uniform.double().cpu() * (0.5 - below)).item()
        return MaskedLatentRandomness(min(1.0, max(self.config.least, 1 + self.config.spread * quantile)), draws)

    def loss(
        self, network: nn.Module, code: Code, condition: Condition | None, randomness: MaskedLatentRandomness
    ) -> dict[str, Tensor]:
        tokens, draws = Patching.of(network).tokens(code.z), randomness.draws
        batch, places, _ = tokens.shape
        count = min(places, max(1, math.ceil(places * randomness.rate)))
        order = draws.uniform("order", (places,)).argsort(dim=-1)
        known, asked = order[:, count:], order[:, :count].repeat(1, self.config.copies)  # [B, K] and [B, R]
        rows = Code(z=take_places(tokens, asked).flatten(0, 1)[:, None])  # [B R, 1, D]

        def denoise(noisy: Tensor, time: Tensor, _: Condition | None) -> Tensor:
            given = noisy.view(batch, -1, noisy.shape[-1]), time.view(batch, -1)
            return network(tokens, known, asked, *given, condition, dropout=draws).flatten(0, 1)[:, None]

        return self.head.loss(denoise, rows, None, self.head.draw(rows, RowDraws(draws, asked.shape[1])))

    @torch.no_grad()
    def sample(self, request: SamplingRequest, settings: HeadSampling | None = None) -> Code:
        """A code from masks alone, in `request.steps` evaluations of the network and as many times `head_steps` of the
        head; a token's noise is that of "start" and of "step_i", i a step of the head, at its place."""
        settings, patching = settings or self.read_settings({}), Patching.of(request.network)
        ranks = settings.own.ranks(request.draws, patching.patches)
        dim = patching.size ** len(patching.grid) * request.spec.dim
        tokens = torch.zeros(*ranks.shape, dim, device=ranks.device)
        masked = torch.ones_like(ranks, dtype=torch.bool)
        return Code(z=patching.codes(self._fill(request, tokens, masked, ranks, settings)))

    @torch.no_grad()
    def regenerate(self, request: SamplingRequest, original: Original, settings: HeadSampling | None = None) -> Code:
        """The code with its tokens masked and filled in again, but for the kept ones and a random fraction `preserve`.

        Takes `request.steps` steps, or as many as there are tokens beside that fraction. A patch stays where all its
        tokens are kept.
        """
        settings, patching = settings or self.read_settings({}), Patching.of(request.network)
        tokens = patching.tokens(original.code.z)
        preserved = math.floor(tokens.shape[1] * original.preserve + 1e-9)
        if original.stays_whole or preserved == tokens.shape[1]:
            return original.copy()
        kept = None if original.kept is None else patching.inside(original.kept)
        masked = masked_anew(tokens, preserved, kept, request.draws)
        ranks = settings.own.ranks(request.draws, patching.patches)
        made = self._fill(request, tokens.masked_fill(masked[..., None], 0), masked, ranks, settings, preserved)
        return original.restore(Code(z=patching.codes(made)))

    def _fill(
        self,
        request: SamplingRequest,
        tokens: Tensor,
        masked: Tensor,
        ranks: Tensor,
        settings: HeadSampling,
        preserved: int = 0,
    ) -> Tensor:
        """Tokens [B, M, D] whose `masked` ones are settled from the highest rank down, each image at its own rate.

        Guidance goes by the share that is masked after the step where nothing is known at first, of one token at least.
        """
        if request.weak is not None and request.negative is not None:
            raise ValueError(WEAK_OR_NEGATIVE)
        if request.guidance.rescale:
            raise ValueError("guidance_rescale is for codes that are denoised as a whole; leave it out")
        places, schedule = masked.shape[1], settings.own.schedule
        steps = min(request.steps, places - preserved)
        whole = masked_counts(schedule, places, steps)
        counts = [masked_counts(schedule, count, steps) for count in masked.sum(dim=1).tolist()]
        patching = Patching.of(request.network)
        draws = PlaceDraws(request.draws, request.spec, patching, settings.own)
        for step, left in enumerate(torch.tensor(counts, device=masked.device).unbind(dim=1)):
            later = masked & lowest(ranks.masked_fill(~masked, torch.inf), left)
            draws.places = masked & ~later
            if draws.places.any():
                scale = request.guidance.at(max(1, whole[step]) / places)
                tokens[draws.places] = self._settle(request, tokens, masked, draws, scale, settings)
            masked = later
            codes = reported(request.on_step, step, 1 - (step + 1) / steps, patching.codes(tokens))
            tokens = patching.tokens(codes).clone()
        return tokens

    def _settle(
        self,
        request: SamplingRequest,
        tokens: Tensor,
        masked: Tensor,
        draws: PlaceDraws,
        scale: float,
        settings: HeadSampling,
    ) -> Tensor:
        """The tokens at `draws.places`, [R, D]."""
        network, condition, weak, second = request.network, request.condition, request.weak, None
        states = states_of(network, tokens, masked, condition)
        if scale != 1:
            if weak is None and condition is None:
                raise ValueError(NOTHING_TO_GUIDE)
            away = network if weak is None else weak
            other = opposite(network, condition, request.negative) if weak is None else condition
            second = GivenState(away, states_of(away, tokens, masked, other)[draws.places][:, None])
        first = GivenState(network, states[draws.places][:, None])
        spec, guidance = LatentSpec((1,), tokens.shape[-1]), Guidance(scale, channels=request.guidance.channels)
        own = SamplingRequest(first, None, spec, draws, settings.own.head_steps, guidance, weak=second)
        return self.head.sample(own, settings.head).z[:, 0]
