"""diffusers' schedulers as solvers: those this library sets up itself and those a user swaps in."""

import inspect
from collections.abc import Callable

import torch
from diffusers import SchedulerMixin
from torch import Generator, Tensor

from pipeline.draws import Draws
from pipeline.samplers.levels import Report, ladder, reported

NEARLY_NOISE = 1 - 1e-6  # alpha = 0 has no logarithm, which these solvers step in

Evaluate = Callable[[Tensor, float], Tensor]


def at_levels(kind: type[SchedulerMixin], levels: list[float]) -> SchedulerMixin:
    """A multistep scheduler of diffusers on the linear path, at these noise levels."""
    scheduler = kind(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=1.0)
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas = torch.tensor([min(level, NEARLY_NOISE) for level in levels])
    return scheduler


def run_flow(
    scheduler: SchedulerMixin,
    velocity: Evaluate,
    z: Tensor,
    draws: Draws | None = None,
    report: Report | None = None,
) -> Tensor:
    """Step through `scheduler.sigmas`, which are noise levels; its timesteps may be rounded and are not used.

    `draws` are for schedulers that add noise of their own.
    """
    levels = scheduler.sigmas.tolist()
    extra = _generators(scheduler, draws) if draws else {}
    for i, timestep in enumerate(_begin(scheduler)):
        change = velocity(z, levels[i]).float()
        z = reported(report, i, levels[i + 1], scheduler.step(change, timestep, z, **extra).prev_sample)
    return z


def run_noise(
    scheduler: SchedulerMixin, noise: Evaluate, z: Tensor, steps: int, draws: Draws, report: Report | None = None
) -> Tensor:
    """Run a discrete-time scheduler whose network predicts noise at u = timestep / num_train_timesteps."""
    set_evaluations(scheduler, steps)
    timesteps = _begin(scheduler)
    z = z * scheduler.init_noise_sigma
    extra, span = _generators(scheduler, draws), scheduler.config.num_train_timesteps
    after = [*timesteps[1:].tolist(), 0]
    for i, timestep in enumerate(timesteps):
        predicted = noise(scheduler.scale_model_input(z, timestep), timestep.item() / span)
        z = reported(report, i, after[i] / span, scheduler.step(predicted, timestep, z, **extra).prev_sample)
    return z


def set_evaluations(scheduler: SchedulerMixin, steps: int) -> None:
    """Give the scheduler the longest ladder that costs at most `steps` evaluations (2n - 1 for second-order ones).

    A flow-matching Euler scheduler gets n equal steps, which its own default (down to 1/1000, then to 0) is not.
    """
    if type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
        scheduler.set_timesteps(sigmas=ladder(steps)[:-1])
        return
    for count in range(steps, 0, -1):
        scheduler.set_timesteps(count)
        if len(scheduler.timesteps) <= steps:
            return
    raise ValueError(f"{type(scheduler).__name__} cannot sample in {steps} evaluations; raise the number of steps")


FLOW_EULER = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
FLOW_MULTISTEP = ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler")
NOISE = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
)


def check_flow(scheduler: SchedulerMixin) -> None:
    """ValueError unless the scheduler integrates a flow-matching velocity down to noise level 0."""
    name = type(scheduler).__name__
    if name not in FLOW_EULER + FLOW_MULTISTEP:
        raise ValueError(
            f"{name} does not fit a flow-matching generator; use one of {', '.join(FLOW_EULER + FLOW_MULTISTEP)}"
        )
    if name in FLOW_MULTISTEP:
        wanted = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "final_sigmas_type": "zero"}
    else:
        wanted = {"invert_sigmas": False, "stochastic_sampling": False}
    ladders = {"use_dynamic_shifting": False, "shift_terminal": None, "num_train_timesteps": 1000}
    refuse_other(scheduler, wanted | ladders)


def check_noise(scheduler: SchedulerMixin, trained: dict) -> None:
    """ValueError unless the scheduler takes a noise prediction under the betas the network was `trained` with."""
    name = type(scheduler).__name__
    if name not in NOISE:
        raise ValueError(f"{name} does not fit a generator that predicts noise; use one of {', '.join(NOISE)}")
    refuse_other(scheduler, trained | {"prediction_type": "epsilon", "trained_betas": None, "use_flow_sigmas": False})
    # codes are not bounded by 1, and the chain was trained with some signal left in its last state
    refuse_other(scheduler, {"clip_sample": False, "thresholding": False, "rescale_betas_zero_snr": False})
    if str(scheduler.config.get("variance_type", "fixed")).startswith("learned"):
        raise ValueError(
            f"{name} would need the learned variance, which only the generator's own solvers read; "
            "pass variance_type='fixed_small'"
        )


def refuse_other(scheduler: SchedulerMixin, wanted: dict) -> None:
    """ValueError naming the first setting of the scheduler that is there and is not the wanted one."""
    for setting, value in wanted.items():
        if (given := scheduler.config.get(setting, value)) != value:
            name = type(scheduler).__name__
            raise ValueError(
                f"{name} has {setting}={given!r}, this generator needs {value!r}: {name}.from_config("
                f"scheduler.config, {setting}={value!r})"
            )


def _begin(scheduler: SchedulerMixin) -> Tensor:
    """Its timesteps, with its step counter at 0, so that equal rounded timesteps are not taken for one another."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler.timesteps


def _generators(scheduler: SchedulerMixin, draws: Draws) -> dict[str, list[Generator]]:
    """One generator an image for schedulers that draw noise, seeded by the image's own draws."""
    if "generator" not in inspect.signature(scheduler.step).parameters:
        return {}
    seeds = draws.uniform("scheduler").mul(2**24).long().tolist()
    return {"generator": [Generator().manual_seed(seed) for seed in seeds]}
