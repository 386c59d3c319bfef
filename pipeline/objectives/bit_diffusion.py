"""Diffusion of bits: a code's bits become fair coins, and the network learns which ones are wrong."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin  # noqa: F401  diffusers looks for it in the component's own module when loading
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec, plain_ids, stack_ids
from pipeline.draws import Draws
from pipeline.nn.bits import bits_of, bits_to_ids, ids_to_bits
from pipeline.nn.finite import check_finite
from pipeline.objectives.base import Objective
from pipeline.ranges import Number, Positive
from pipeline.samplers.bit_flipping import BitFlipping, certain, noised
from pipeline.samplers.choice import LOGITS
from pipeline.samplers.guidance import guided_logits, levels
from pipeline.samplers.original import Original, per_token
from pipeline.samplers.request import SamplingRequest
from pipeline.validation import check_at_least


class FlipRandomness(NamedTuple):
    """The random arguments of the loss."""

    time: Tensor  # [B] noise levels
    draws: Draws  # of the noise, uniform [B, N, bits] by the name "noise", and where dropout draws from


class BitDiffusion(Objective):
    """Term `flip`: binary cross-entropy, in nats a bit, of whether it is wrong, as in Instella-T2I (arXiv:2506.21022).

    At noise level u a bit is 1 with probability x (1 - u) + u / 2, x being the data's. Ids of 2^b values are b bits.

    Args:
        time: how noise levels are drawn in training; the logit's mean is that of the noise level (positive: noisier).
    """

    role = "bit_denoiser"
    discrete = True
    settings = BitFlipping

    @register_to_config
    def __init__(
        self,
        time: Literal["uniform", "logit_normal"] = "logit_normal",
        logit_mean: Number = 0.0,
        logit_std: Positive = 1.0,
    ):
        pass

    @property
    def terms(self) -> tuple[str, ...]:
        return ("flip",)

    def check_codes(self, spec: LatentSpec) -> None:
        """ValueError where ids are no bits."""
        bits_of(spec.vocab)

    def check_sampler(self, steps: int, spec: LatentSpec, settings: BitFlipping) -> None:
        """ValueError for less than one step."""
        check_at_least("steps", steps, 1)

    def draw(self, code: Code, draws: Draws) -> FlipRandomness:
        if self.config.time == "uniform":
            return FlipRandomness(draws.uniform("time"), draws)
        logit = self.config.logit_mean + self.config.logit_std * draws.normal("time", ())
        return FlipRandomness(logit.sigmoid(), draws)

    def loss(
        self, network: nn.Module, code: Code, condition: Condition | None, randomness: FlipRandomness
    ) -> dict[str, Tensor]:
        time, draws = randomness
        vocab = getattr(network, "module", network).config.vocab  # one in a wrapper for several processes
        data = ids_to_bits(stack_ids(code.ids), vocab)
        state = self.add_noise(data, time, draws.uniform("noise", tuple(data.shape[1:])))
        logits = network(bits_to_ids(state, vocab), time, condition, dropout=draws)
        return {"flip": F.binary_cross_entropy_with_logits(logits.float(), (state != data).float())}

    def add_noise(self, bits: Tensor, time: Tensor, uniform: Tensor) -> Tensor:
        """Bits [B, N, bits] int64 at noise levels `time` [B], by uniform numbers of their shape."""
        return (uniform < noised(bits, time[:, None, None])).to(bits.dtype)

    @torch.no_grad()
    def sample(self, request: SamplingRequest, settings: BitFlipping = BitFlipping()) -> Code:
        """A code from fair bits, `draws.uniform("start", [N, bits]) < 1 / 2`, in `request.steps` evaluations.

        The bits after each step but the last, which takes the likelier ones, are drawn by `draws.uniform("bits",
        [steps - 1, N, bits])`. `on_step` is called as (i, level, ids) after each step; it may return other ids.
        """
        uniform = self._start(request)
        return self._descend(request, (uniform < 0.5).to(torch.int64), 1.0, settings)

    @torch.no_grad()
    def regenerate(self, request: SamplingRequest, original: Original, settings: BitFlipping = BitFlipping()) -> Code:
        """The code noised to the level u = 1 - preserve and brought back in `request.steps` evaluations.

        Kept tokens are the original's, noised to the level of each step by one and the same noise.
        """
        if original.stays_whole:
            return original.copy()
        level, uniform = 1 - original.preserve, self._start(request)
        data = ids_to_bits(stack_ids(original.code.ids), request.spec.vocab)
        state = (uniform < noised(data, level)).to(torch.int64)
        return original.restore(self._descend(request, state, level, settings, Known(original.kept, data, uniform)))

    def _start(self, request: SamplingRequest) -> Tensor:
        spec = request.spec
        return request.draws.uniform("start", (spec.tokens, spec.codebooks * bits_of(spec.vocab)))

    def _descend(
        self,
        request: SamplingRequest,
        state: Tensor,
        start: float,
        settings: BitFlipping,
        known: "Known | None" = None,
    ) -> Code:
        """From bits [B, N, bits] at noise level `start` to data."""
        steps, vocab, tokens = request.steps, request.spec.vocab, tuple(state.shape[1:])
        uniform = request.draws.uniform("bits", (steps - 1, *tokens)) if steps > 1 else None
        falling = settings.levels(steps, start)
        for i, (level, next_level) in enumerate(zip(falling, falling[1:])):
            wrong = (self._logits(request, state, level) / settings.temperature).sigmoid()
            data = torch.where(state > 0, 1 - wrong, wrong)  # the chance that it is a 1
            if i < steps - 1:
                state = (uniform[:, i] < settings.chance(data, state, level, next_level)).to(torch.int64)
            else:
                state = certain(data)
            state = state if known is None else known.put_into(state, next_level)
            changed = None
            if request.on_step is not None:
                changed = request.on_step(i, next_level, plain_ids(bits_to_ids(state, vocab)))
            state = state if changed is None else ids_to_bits(stack_ids(changed), vocab)
        return Code(ids=plain_ids(bits_to_ids(state, vocab)))

    def _logits(self, request: SamplingRequest, state: Tensor, level: float) -> Tensor:
        """The guided logits that the bits of a state at a noise level are wrong, float32."""
        ids, scale = bits_to_ids(state, request.spec.vocab), request.guidance.at(level)
        if scale == 1:
            logits = request.network(ids, levels(ids, level), request.condition).float()
        else:
            both = torch.cat([ids, ids])
            logits = request.network(both, levels(both, level), request.both_halves()).float()
            logits = guided_logits(logits, scale)
        check_finite(logits, LOGITS)
        return logits


class Known(NamedTuple):
    """Tokens of a state whose data and noise are known."""

    tokens: Tensor | None  # [B, N] bool: which they are; None: none
    data: Tensor  # [B, N, bits]
    uniform: Tensor  # [B, N, bits]: of the noise

    def put_into(self, state: Tensor, level: float) -> Tensor:
        """The state with known tokens at their noise level."""
        if self.tokens is None:
            return state
        known = (self.uniform < noised(self.data, level)).to(state.dtype)
        return torch.where(per_token(self.tokens, state), known, state)
