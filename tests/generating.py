"""Codes of an objective: its records of a request and of its sampler's settings from plain arguments."""

from typing import Any

from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import Draws
from pipeline.objectives.base import Objective
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.original import Original
from pipeline.samplers.request import OnStep, SamplingRequest


def sample(
    objective: Objective,
    network: nn.Module,
    condition: Condition | None,
    spec: LatentSpec,
    draws: Draws,
    steps: int,
    guidance: Guidance = Guidance(),
    on_step: OnStep | None = None,
    scheduler=None,
    weak: nn.Module | None = None,
    negative: Condition | None = None,
    **settings: Any,
) -> Code:
    request = SamplingRequest(network, condition, spec, draws, steps, guidance, on_step, weak, scheduler, negative)
    return objective.sample(request, objective.read_settings(settings))


def regenerate(
    objective: Objective,
    network: nn.Module,
    code: Code,
    condition: Condition | None,
    preserve: float,
    draws: Draws,
    steps: int,
    guidance: Guidance = Guidance(),
    weak: nn.Module | None = None,
    kept: Tensor | None = None,
    **settings: Any,
) -> Code:
    request = SamplingRequest(network, condition, spec_of(code, network), draws, steps, guidance, weak=weak)
    return objective.regenerate(request, Original(code, preserve, kept), objective.read_settings(settings))


def spec_of(code: Code, network: nn.Module) -> LatentSpec:
    """Of the codes at hand: the grid as the network knows it, one row where it does not."""
    if code.z is not None:
        return LatentSpec(grid=(code.z.shape[1],), dim=code.z.shape[2])
    grid = tuple(getattr(network.config, "grid", code.ids.shape[1:2]))
    return LatentSpec(grid, dim=0, vocab=network.config.vocab, codebooks=1 if code.ids.ndim == 2 else code.ids.shape[2])


def check_sampler(objective: Objective, steps: int, spec: LatentSpec, **settings: Any) -> None:
    objective.check_sampler(steps, spec, objective.read_settings(settings))
