"""Gaussian diffusion in discrete time: the network predicts the noise and, if it is learned, the variance."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import Draws
from pipeline.objectives.base import DenoiserInput, Objective
from pipeline.ranges import InnerFraction, RangedFields
from pipeline.samplers.levels import reported
from pipeline.samplers.noise_chain import NoiseChain, Spacing, discretized_bits, gaussian_bits
from pipeline.samplers.original import KnownTokens, Original
from pipeline.samplers.request import SamplingRequest
from pipeline.samplers.solvers_of_diffusers import check_noise, run_noise
from pipeline.solvers.base import ChainSolver, ChainStep
from pipeline.solvers.ddpm import Ddpm
from pipeline.validation import Range, SettingError


@dataclass(frozen=True)
class ChainSampling(RangedFields):
    """How a chain is followed back to data; the settings of the solver stand beside these."""

    solver: ChainSolver = Ddpm()
    clip: bool = False  # holds the expected data in [-1, 1], which codes of unit scale leave
    spacing: Spacing = "even"  # of the kept timesteps; stride keeps every k-th


class ChainRandomness(NamedTuple):
    """The random arguments of the loss."""

    timestep: Tensor  # [B] int64
    noise: Tensor  # [B, N, C]


class GaussianDiffusion(Objective):
    """Terms `mse` and, with a learned variance, `vb` in bits; DiT weighs both 1.

    Ho et al., arXiv:2006.11239; the learned variance of Nichol and Dhariwal, arXiv:2102.09672, as DiT
    (arXiv:2212.09748) trains it. Timestep t is the noise level u = t / num_train_timesteps, so that a network with a
    time_scale of num_train_timesteps embeds t itself. The first four arguments bear diffusers' names, so that
    `Scheduler.from_config(objective.config)` fits.

    Args:
        beta_schedule: betas that rise linearly from `beta_start` to `beta_end`, or the cosine law of
            arXiv:2102.09672, which needs neither.
        variance: of a reverse step. learned_range lies between the posterior's and beta, at the second half of the
            network's channels; fixed_small is the posterior's, fixed_large is beta.
    """

    autoguided = True
    settings = ChainSampling
    solves = "noise_chain"

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: Annotated[int, Range(2)] = 1000,
        beta_start: InnerFraction = 1e-4,
        beta_end: InnerFraction = 2e-2,
        beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear",
        prediction_type: Literal["epsilon"] = "epsilon",
        variance: Literal["learned_range", "fixed_small", "fixed_large"] = "learned_range",
    ):
        if beta_start > beta_end:
            raise SettingError("beta_end", f" is {beta_end:g}, and beta_start is {beta_start:g}; give that or more")

    @cached_property
    def chain(self) -> NoiseChain:
        if self.config.beta_schedule == "squaredcos_cap_v2":
            return NoiseChain.cosine(self.config.num_train_timesteps)
        return NoiseChain.linear(self.config.num_train_timesteps, self.config.beta_start, self.config.beta_end)

    @property
    def outputs(self) -> int:
        return 2 if self.config.variance == "learned_range" else 1

    @property
    def terms(self) -> tuple[str, ...]:
        return ("mse", "vb") if self.config.variance == "learned_range" else ("mse",)

    def draw(self, code: Code, draws: Draws) -> ChainRandomness:
        span = self.config.num_train_timesteps
        timestep = (draws.uniform("time") * span).long().clamp(max=span - 1)
        return ChainRandomness(timestep, draws.normal("noise", tuple(code.z.shape[1:])))

    def denoiser_input(self, code: Code, condition: Condition | None, randomness: ChainRandomness) -> DenoiserInput:
        timestep, noise = randomness
        z = self.chain.noised(code.z, noise, timestep)
        return DenoiserInput(z, timestep.float() / self.config.num_train_timesteps, condition)

    def loss(
        self, network: nn.Module, code: Code, condition: Condition | None, randomness: ChainRandomness
    ) -> dict[str, Tensor]:
        return {name: each.mean() for name, each in self.per_image(network, code, condition, randomness).items()}

    def per_image(
        self, network: nn.Module, code: Code, condition: Condition | None, randomness: ChainRandomness
    ) -> dict[str, Tensor]:
        """The terms of each image, [B], means over tokens and channels."""
        z, *rest = self.denoiser_input(code, condition, randomness)
        output = network(z, *rest).float()
        predicted = output[..., : z.shape[-1]]
        terms = {"mse": ((predicted - randomness.noise) ** 2).mean(dim=(1, 2))}
        if self.config.variance == "learned_range":
            terms["vb"] = self.bound(output, code.z, z, randomness.timestep)
        return terms

    def bound(self, output: Tensor, data: Tensor, z: Tensor, timestep: Tensor) -> Tensor:
        """The variational term of each image at its timestep, [B] in bits per element; it trains the variance alone.

        KL of the true posterior from the model's, and at timestep 0 the likelihood of data binned in 255ths.
        """
        predicted, share = output.chunk(2, dim=-1)
        frozen = torch.cat([predicted.detach(), share], dim=-1)
        mean, log_variance, _ = self.reverse(self.chain, frozen, z, timestep)
        true_log_variance = self.chain.at(self.chain.posterior_log_variance, timestep, z)
        divergence = gaussian_bits(self.chain.posterior_mean(data, z, timestep), true_log_variance, mean, log_variance)
        likelihood = discretized_bits(data, mean, log_variance)
        return torch.where((timestep == 0)[:, None, None], likelihood, divergence).mean(dim=(1, 2))

    def reverse(
        self, chain: NoiseChain, output: Tensor, z: Tensor, index: int | Tensor, clip: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log variance of p(z_{t-1} | z_t), and the expected data; each [B, N, C]."""
        data = chain.data_from_noise(output[..., : z.shape[-1]], z, index)
        data = data.clamp(-1, 1) if clip else data
        return chain.posterior_mean(data, z, index), self._log_variance(chain, output, z, index), data

    def _log_variance(self, chain: NoiseChain, output: Tensor, z: Tensor, index: int | Tensor) -> Tensor:
        if self.config.variance == "fixed_large":
            return chain.at(chain.large_log_variance, index, z).expand_as(z)
        small = chain.at(chain.posterior_log_variance, index, z).expand_as(z)
        if self.config.variance == "fixed_small":
            return small
        share = (output[..., z.shape[-1] :] + 1) / 2
        return share * chain.at(chain.beta_log_variance, index, z) + (1 - share) * small

    @torch.no_grad()
    def sample(self, request: SamplingRequest, settings: ChainSampling = ChainSampling()) -> Code:
        """A code from noise in `request.steps` evaluations, a scheduler's at most so many.

        The noise of step i is `draws.normal("step_i", spec.shape)`.
        """
        start = request.draws.normal("start", request.spec.shape)
        if request.scheduler is None:
            return Code(z=self._descend(self.chain.spaced(request.steps, settings.spacing), request, start, settings))
        self.check_scheduler(request.scheduler)
        predict, dim = request.predict(), request.spec.dim
        ask = lambda z, u: predict(z, u)[..., :dim]  # noqa: E731
        return Code(z=run_noise(request.scheduler, ask, start, request.steps, request.draws, request.on_step))

    @torch.no_grad()
    def regenerate(
        self, request: SamplingRequest, original: Original, settings: ChainSampling = ChainSampling()
    ) -> Code:
        """The code noised to u = 1 - preserve, to the nearest timestep, and brought back in `steps` evaluations.

        Where fewer timesteps than that are left, each is visited once. The network sees kept tokens noised to the
        level at hand.
        """
        if original.stays_whole:
            return original.copy()
        below = max(1, round((1 - original.preserve) * self.config.num_train_timesteps))
        chain = self.chain.spaced(min(request.steps, below), settings.spacing, below)
        noise = request.draws.normal("start", request.spec.shape)
        start = chain.noised(original.code.z, noise, len(chain.betas) - 1) if original.preserve else noise
        return original.restore(Code(z=self._descend(chain, request, start, settings, original.known(noise))))

    def check_sampler(self, steps: int, spec: LatentSpec, settings: ChainSampling) -> None:
        """ValueError where these settings, or this number of steps, do not fit the chain."""
        self.chain.spaced(steps, settings.spacing)
        settings.solver.check()

    def check_scheduler(self, scheduler: SchedulerMixin) -> None:
        """ValueError with one line unless this diffusers scheduler can take the place of the solver."""
        names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
        check_noise(scheduler, {name: self.config[name] for name in names})

    def _descend(
        self,
        chain: NoiseChain,
        request: SamplingRequest,
        z: Tensor,
        settings: ChainSampling,
        known: KnownTokens | None = None,
    ) -> Tensor:
        levels, shape = (chain.timesteps / self.config.num_train_timesteps).tolist(), tuple(z.shape[1:])
        predict = request.predict()
        for i, index in enumerate(reversed(range(len(levels)))):
            if known is not None:
                z = known.put_into(z, chain.at(chain.alpha, index, z), chain.at(chain.sigma, index, z))
            output = predict(z, levels[index])
            state = ChainStep(chain, index, z, *self.reverse(chain, output, z, index, settings.clip))
            z = settings.solver.step(state, lambda i=i: request.draws.normal(f"step_{i}", shape))
            z = reported(request.on_step, i, levels[index - 1] if index else 0.0, z)
        return z
