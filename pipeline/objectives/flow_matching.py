"""Flow matching: the network learns the velocity along a path between data and noise."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import Draws
from pipeline.nn.class_token import join_token, split_token
from pipeline.objectives.base import DenoiserInput, Objective
from pipeline.ranges import Count, FractionAboveZero, FractionBelowOne, Number, Positive, RangedFields, Whole
from pipeline.samplers.guidance import Predict
from pipeline.samplers.levels import check_shift, settled_shift, shifted
from pipeline.samplers.original import KnownTokens, Original
from pipeline.samplers.paths import PATHS, Path
from pipeline.samplers.request import OnStep, SamplingRequest
from pipeline.samplers.solvers_of_diffusers import check_flow, run_flow, set_evaluations
from pipeline.solvers.base import Flow, FlowSolver
from pipeline.solvers.euler import Euler
from pipeline.validation import check_at_least

WEIGHTINGS = {
    "velocity": ("none",),
    "noise": ("none", "velocity", "likelihood"),
    "data": ("none", "velocity"),
    "score": ("none", "velocity", "likelihood"),
}


@dataclass(frozen=True)
class FlowSampling(RangedFields):
    """How a flow is followed; the settings of the solver stand beside these."""

    solver: FlowSolver = Euler()
    shift: Positive = 1.0  # u -> s u / (1 + (s - 1) u), above 1 longer at the noise; 1/0.3 is LightningDiT's 0.3
    shift_base: Positive | None = None  # in place of shift, as in training
    end: FractionBelowOne = 0.0  # level, before the shift, at which the result is read; in RAE's release 0.001


class FlowRandomness(NamedTuple):
    """The random arguments of the loss."""

    time: Tensor  # [B] noise levels
    noise: Tensor  # [B, N, C], a class token's rows below


class FlowMatching(Objective):
    """Terms `flow` and, when asked for, `cosine` and `class_token`.

    Lipman et al., arXiv:2210.02747; paths, predictions and weightings of SiT, arXiv:2401.08740; logit-normal times of
    Stable Diffusion 3, arXiv:2403.03206; the cosine term of LightningDiT, arXiv:2501.01423, equation 6; data predicted
    under the velocity's loss as in JiT, arXiv:2511.13720; the shift by dimension of RAE, arXiv:2510.11690.

    Args:
        path: linear, trigonometric (SiT's GVP) or variance_preserving.
        prediction: what the network's output means; samplers convert it to a velocity (noise - data).
        weighting: of the squared error of noise and score: (diffusion/sigma)^2 for `velocity`, diffusion/sigma^2 for
            `likelihood`. Of data, `velocity` is the error of the velocity that follows from it, sigma held at 0.05 or
            above.
        time: how noise levels are drawn in training; the logit's mean is that of the noise level (positive: noisier).
        largest_time: no level is above it before the shift: 0.999 in RAE's released code, where uniform levels are
            multiplied by it, and the logit's normal law is cut off there.
        uniform_after: training steps after which levels are uniform (LightningDiT's 800 epochs: 600,000).
        shift: u -> s u / (1 + (s - 1) u) on the drawn levels; above 1 is noisier.
        shift_base: in place of `shift`, s = sqrt(tokens * channels / shift_base): 4096 as published, less for latents
            of fewer numbers than that.
        cosine: adds 1 - cos(predicted, true velocity) over the channels of each token.
        class_token: values of a class token that is stored with every code, noised to the same level, and predicted
            with it; adds its squared error (REG, arXiv:2507.01467). A sample's is drawn from noise, and left out at the
            end.
    """

    autoguided = True
    settings = FlowSampling
    solves = "flow"

    @register_to_config
    def __init__(
        self,
        path: Literal["linear", "trigonometric", "variance_preserving"] = "linear",
        prediction: Literal["velocity", "noise", "data", "score"] = "velocity",
        weighting: Literal["none", "velocity", "likelihood"] = "none",
        time: Literal["uniform", "logit_normal"] = "uniform",
        logit_mean: Number = 0.0,
        logit_std: Positive = 1.0,
        shift: Positive = 1.0,
        cosine: bool = False,
        uniform_after: Count | None = None,
        shift_base: Positive | None = None,
        class_token: Whole = 0,
        largest_time: FractionAboveZero = 1.0,
    ):
        if weighting not in WEIGHTINGS[prediction]:
            known = " or ".join(WEIGHTINGS[prediction])
            raise ValueError(f"weighting={weighting} is not for {prediction} predictions; set it to {known}")
        if cosine and prediction != "velocity":
            raise ValueError("the cosine term compares velocities; set prediction=velocity or cosine=false")
        check_shift(shift, shift_base)
        if uniform_after is not None and time == "uniform":
            raise ValueError(f"uniform_after={uniform_after} ends another law of times after a step; leave it out")

    @property
    def route(self) -> Path:
        return PATHS[self.config.path]

    @property
    def class_token(self) -> int:
        return self.config.class_token

    @property
    def terms(self) -> tuple[str, ...]:
        return ("flow", *["cosine"] * self.config.cosine, *["class_token"] * bool(self.class_token))

    def draw(self, code: Code, draws: Draws) -> FlowRandomness:
        shape, late = tuple(code.z.shape[1:]), self.config.uniform_after
        if self.config.time == "uniform" or (late is not None and (draws.step or 0) >= late):
            time = self.config.largest_time * draws.uniform("time")
        else:
            time = torch.sigmoid(self.config.logit_mean + self.config.logit_std * self._draw_logit(draws))
        shift = settled_shift(shape, self.config.shift, self.config.shift_base)
        time = shifted(time, shift).clamp(*self.bounds())
        return FlowRandomness(time, self._noise(draws, "noise", shape))

    def _draw_logit(self, draws: Draws) -> Tensor:
        """[B], standard normal, or as much of that law as lies below the logit of `largest_time`."""
        if self.config.largest_time == 1:
            return draws.normal("time", ())
        largest = torch.logit(torch.tensor(self.config.largest_time, dtype=torch.float64))
        below = torch.special.ndtr((largest - self.config.logit_mean) / self.config.logit_std)
        return torch.special.ndtri(below.to(torch.float32) * draws.uniform("time"))

    def bounds(self) -> tuple[float, float]:
        """The noise levels at which every conversion is finite, as SiT bounds them in training."""
        if self.config.path == "variance_preserving":
            return 1e-5, 1 - 1e-5
        return (0.0, 1.0) if self.config.prediction in ("velocity", "data") else (1e-3, 1 - 1e-3)

    def denoiser_input(self, code: Code, condition: Condition | None, randomness: FlowRandomness) -> DenoiserInput:
        time, noise = randomness
        return DenoiserInput(self.route.state(self._state(code), noise, time[:, None, None]), time, condition)

    def loss(
        self, network: nn.Module, code: Code, condition: Condition | None, randomness: FlowRandomness
    ) -> dict[str, Tensor]:
        return {name: each.mean() for name, each in self.per_image(network, code, condition, randomness).items()}

    def per_image(
        self, network: nn.Module, code: Code, condition: Condition | None, randomness: FlowRandomness
    ) -> dict[str, Tensor]:
        """The terms of each image, [B], means over tokens and channels."""
        u, noise, data = randomness.time[:, None, None], randomness.noise, self._state(code)
        predicted = network(*self.denoiser_input(code, condition, randomness)).float()
        error, of_token = split_token(self.error(predicted, data, noise, u), self.class_token)
        terms = {"flow": error.mean(dim=(1, 2))}
        if self.config.cosine:
            cosine = cosine_similarity(predicted, self.route.velocity(data, noise, u), dim=-1)
            terms["cosine"] = (1 - cosine[:, : code.z.shape[1]]).mean(dim=1)
        if self.class_token:
            terms["class_token"] = of_token.mean(dim=1)
        return terms

    def error(self, predicted: Tensor, data: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        """Squared error in the space of the prediction, weighted, [B, N, C]. A score is compared as sigma * score."""
        path = self.route
        difference = {
            "velocity": lambda: predicted - path.velocity(data, noise, u),
            "noise": lambda: predicted - noise,
            "data": lambda: predicted - data,
            "score": lambda: predicted * path.sigma(u) + noise,
        }[self.config.prediction]()
        weight = {
            "none": lambda: 1.0,
            "velocity": lambda: self.velocity_weight(u),
            "likelihood": lambda: path.diffusion(u) / path.sigma(u) ** 2,
        }[self.config.weighting]()
        return weight * difference**2

    def velocity_weight(self, u: Tensor) -> Tensor:
        """Of the squared error of what is predicted, so that it counts as the velocity's own."""
        if self.config.prediction != "data":
            return (self.route.diffusion(u) / self.route.sigma(u)) ** 2
        return (self.route.turn(u) / self.route.sigma(u).clamp(min=0.05)) ** 2  # JiT's floor

    def velocity(self, predicted: Tensor, z: Tensor, u: Tensor) -> Tensor:
        """What the network predicted at z, as dz/du; `u` broadcasts against z [B, N, C]."""
        convert = {
            "velocity": lambda: predicted,
            "noise": lambda: self.route.velocity_from_noise(predicted, z, u),
            "data": lambda: self.route.velocity_from_data(predicted, z, u),
            "score": lambda: self.route.velocity_from_score(predicted, z, u),
        }
        return convert[self.config.prediction]()

    @torch.no_grad()
    def sample(self, request: SamplingRequest, settings: FlowSampling = FlowSampling()) -> Code:
        """A code from noise in exactly `request.steps` evaluations, whatever the solver.

        A scheduler of second order takes one evaluation less when the number is even.
        """
        if self.class_token and request.guidance.channels is not None:
            raise ValueError("with a class token all channels are guided; leave guidance_channels out")
        start = self._noise(request.draws, "start", request.spec.shape)
        if request.scheduler is None:
            return self._code(self._descend(request, start, 1.0, settings))
        if settings.end:
            raise ValueError("a scheduler of diffusers ends at data; leave end out, or take a solver")
        self.check_scheduler(request.scheduler)
        set_evaluations(request.scheduler, request.steps)
        field, report = self._field(request), self._of_code(request.on_step)
        return self._code(run_flow(request.scheduler, field, start, request.draws, report))

    @torch.no_grad()
    def regenerate(self, request: SamplingRequest, original: Original, settings: FlowSampling = FlowSampling()) -> Code:
        """The code noised to the level u = 1 - preserve and brought back in `request.steps` evaluations.

        Kept tokens move along the path from their noise to their data. Raises ValueError where a class token is to be
        noised and the code has none.
        """
        if original.stays_whole:
            return original.copy()
        if original.preserve and self.class_token and original.code.class_token is None:
            raise ValueError("this generator makes a class token with each code, and an image has none: strength=1")
        level, noise = 1 - original.preserve, self._noise(request.draws, "start", request.spec.shape)
        start = noise
        if original.preserve:
            start = self.route.state(self._state(original.code), noise, torch.tensor(level, dtype=torch.float64))
        return original.restore(self._code(self._descend(request, start, level, settings, original.known(noise))))

    def check_sampler(self, steps: int, spec: LatentSpec, settings: FlowSampling) -> None:
        """ValueError where these settings, or this number of steps, do not fit the path."""
        check_at_least("steps", steps, 1)
        settled_shift(spec.shape, settings.shift, settings.shift_base)
        settings.solver.check(steps)
        if settings.end and not settings.solver.stops_early:
            raise ValueError(f"solver={type(settings.solver).__name__} has its own end; leave end out, or use euler")
        self._check_path(settings.solver)

    def check_codes(self, spec: LatentSpec) -> None:
        """ValueError where the shift by dimension would turn towards the data."""
        settled_shift(spec.shape, self.config.shift, self.config.shift_base)

    def check_scheduler(self, scheduler: SchedulerMixin) -> None:
        """ValueError with one line unless this diffusers scheduler can take the place of the solver."""
        self._only_linear(type(scheduler).__name__)
        check_flow(scheduler)

    def _state(self, code: Code) -> Tensor:
        """What is noised: z [B, N, C], the class token's rows below where there is one."""
        if self.class_token and code.class_token is None:
            raise ValueError("these codes were stored without a class token; state latents.class_token and encode anew")
        return join_token(code.z, code.class_token if self.class_token else None)

    def _noise(self, draws: Draws, name: str, shape: tuple[int, int]) -> Tensor:
        """Standard normal, of the shape of `_state` for codes [N, C]."""
        noise = draws.normal(name, shape)
        return join_token(noise, draws.normal(f"class_token_{name}", (self.class_token,)) if self.class_token else None)

    def _code(self, state: Tensor) -> Code:
        """The code in a state, for decoders: without the class token."""
        return Code(z=split_token(state, self.class_token)[0])

    def _of_code(self, on_step: OnStep | None) -> OnStep | None:
        """`on_step` called with the code alone, which it may change."""
        if on_step is None or not self.class_token:
            return on_step

        def report(step: int, level: float, state: Tensor) -> Tensor | None:
            z, token = split_token(state, self.class_token)
            changed = on_step(step, level, z)
            return None if changed is None else join_token(changed, token)

        return report

    def _descend(
        self,
        request: SamplingRequest,
        z: Tensor,
        level: float,
        settings: FlowSampling,
        known: KnownTokens | None = None,
    ) -> Tensor:
        """From z at noise level `level` to data. Where alpha is 0 at the top, noise is converted just below it."""
        self._check_path(settings.solver)
        singular = self.config.prediction in ("noise", "score") or settings.solver.singular_at_noise
        top = 1 - 1e-3 if singular and self.config.path != "variance_preserving" else 1.0
        shift = settled_shift(request.spec.shape, settings.shift, settings.shift_base)
        report, field = self._of_code(request.on_step), self._field(request)
        field = field if known is None else known.field(field, self.route)
        flow = Flow(field, self.route, request.steps, request.draws, shift, min(level, top), report, settings.end)
        return settings.solver.solve(flow, z)

    def _field(self, request: SamplingRequest) -> Predict:
        predict = request.predict()
        return lambda z, u: self.velocity(predict(z, u), z, torch.tensor(u, dtype=torch.float64))

    def _check_path(self, solver: FlowSolver) -> None:
        if solver.linear_only:
            self._only_linear(f"solver {type(solver).__name__}")

    def _only_linear(self, name: str) -> None:
        if self.config.path != "linear":
            raise ValueError(f"{name} is for the linear path, this one is {self.config.path}; use solver=euler or heun")
