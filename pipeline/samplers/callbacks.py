"""What a user's callback sees after every step of a sampling, and what it may change: state, scale, and the end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from pipeline.code import Code, LatentSpec
from pipeline.samplers.guidance import NOTHING_TO_GUIDE, Guidance
from pipeline.samplers.request import SamplingRequest
from pipeline.validation import suggestion

# (pipeline, step, noise level, tensors by name) -> the tensors to continue with, or None
OnStepEnd = (
    Callable[[DiffusionPipeline, int, float, dict[str, Tensor]], dict[str, Tensor] | None]
    | PipelineCallback
    | MultiPipelineCallbacks
)


class Interrupted(Exception):
    """Ends a sampling whose pipeline was interrupted; `state` is z or ids as the last step left it."""

    def __init__(self, state: Tensor):
        self.state = state


@dataclass(frozen=True)
class LiveGuidance(Guidance):
    """Guidance whose scale follows `current`, which callbacks may change between the steps of a call."""

    current: Callable[[], float] = field(kw_only=True)

    def at(self, time: float) -> float:
        values = {name: value for name, value in vars(self).items() if name not in ("scale", "current")}
        return Guidance(self.current(), **values).at(time)


@dataclass(frozen=True)
class StepCallback:
    """The `on_step` of a pipeline's call: it moves the progress bar, calls the user's callback and heeds interruption.

    The callback may set `_guidance_scale` and `_interrupt` of the pipeline, as those of diffusers do.
    """

    pipe: Any  # a LatentPipeline
    request: SamplingRequest
    callback: OnStepEnd | None
    names: list[str]  # of the tensors that the callback asks for
    bar: Any

    def __call__(self, step: int, time: float, state: Tensor) -> Tensor | None:
        """The state to continue from, None for the one at hand; raises `Interrupted` where that is to be the last."""
        self.bar.update(step + 1 - self.bar.n)
        changed = None
        if self.callback is not None:
            changed = (self.callback(self.pipe, step, time, dict.fromkeys(self.names, state)) or {}).get("latents")
            self._check_scale()
        if self.pipe.interrupt:
            raise Interrupted(state if changed is None else changed)
        return changed

    def _check_scale(self) -> None:
        """ValueError where the callback has changed the scale of a sampling that cannot follow it."""
        if self.pipe.guidance_scale == self.request.guidance.scale:
            return
        if self.request.spec.vocab:
            raise ValueError("the guidance scale of ids holds for the whole call; set guidance_interval or _schedule")
        if self.request.weak is None and self.request.condition is None:
            raise ValueError(NOTHING_TO_GUIDE)


def callback_tensors(callback: OnStepEnd | None, names: list[str] | None, known: list[str]) -> list[str]:
    """Names of the tensors that a callback is given: its own, those asked for, or all; ValueError for others."""
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end is {callback!r}; give a function")
    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        names = callback.tensor_inputs
    names = known if names is None else names
    if not isinstance(names, (list, tuple)):
        raise ValueError(f"callback_on_step_end_tensor_inputs is {names!r}; give a list of names")
    for name in names:
        if name not in known:
            raise ValueError(f"a callback cannot have {name!r}{suggestion(name, known)}")
    return names


def unfinished_code(state: Tensor, spec: LatentSpec) -> Code:
    """The code of an interrupted sampling; tokens that were not chosen yet have id 0."""
    if not spec.vocab:
        return Code(z=state)
    return Code(ids=state.masked_fill(state >= spec.vocab, 0))
