"""The time of a training step on the device at hand, where that takes no more than a few seconds to measure."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.checks.recipe import CheckedRecipe
from pipeline.draws import StepDraws
from pipeline.nn.devices import current_device, device_name, keep_random_states, memory, synchronize
from pipeline.planning.needs import TrainingNeeds, measure, ready
from pipeline.planning.trainings import PlannedTraining, planned
from pipeline.recipes.schema import Recipe
from pipeline.runs.precision import arithmetic, without_autocast
from pipeline.training.optimizing import make_optimizer

LONGEST = 4.0  # seconds that the measurement of a training may take
LARGEST = 20e6, 2e9  # parameters beyond which it is not tried, on a CPU and on an accelerator
FEW = 4  # images of a step from which the time of a whole one is foretold
STEPS = 2  # that are timed, after one more


@dataclass(frozen=True)
class StepTime:
    """Seconds of one micro-batch, forwards, backwards and the optimisers' steps; images are at hand already."""

    seconds: float
    images: int
    device: str


def time_step(training: PlannedTraining, needs: TrainingNeeds, device: torch.device) -> StepTime | None:
    """The time of a micro-batch of one process on `device`; None where it would take too long, or does not fit."""
    parameters = sum(size.trained + size.frozen for size in needs.players.values()) + needs.others
    images = needs.images(1)
    if needs.step is None or parameters > LARGEST[device.type != "cpu"] or not fits(needs, device):
        return None
    task = ready(training, device)
    optimizers = {name: make_optimizer(training.loop, name, player) for name, player in task.players.items()}
    if (tried := one_step(training, task, optimizers, 1, device)) > LONGEST / 2:
        return None
    few = min(FEW, images)
    one, some = (one_step(training, task, optimizers, count, device) for count in (1, few))
    expected = one + max(0.0, some - one) * (images - 1) / max(1, few - 1)
    if tried + expected * (1 + STEPS) > LONGEST:
        return None
    one_step(training, task, optimizers, images, device)
    seconds = [one_step(training, task, optimizers, images, device) for _ in range(STEPS)]
    return StepTime(min(seconds), images, device_name(device))


def step_times(recipe: Recipe, checked: CheckedRecipe, classes: int, places: Collection[str]) -> dict[str, float]:
    """Seconds of one step, without reading images, of the trainings at these places of a recipe that can be timed.

    What the global random generators give next does not change.
    """
    device, seconds = current_device(), {}
    with keep_random_states(device):
        for training in planned(recipe, checked, classes):
            if training.place in places and (found := time_step(training, measure(training), device)) is not None:
                seconds[training.place] = found.seconds * training.loop.accumulate
    return seconds


def fits(needs: TrainingNeeds, device: torch.device) -> bool:
    return needs.memory(1) < memory(device)[0]


def one_step(
    training: PlannedTraining, task: Any, optimizers: Mapping[str, Any], images: int, device: torch.device
) -> float:
    """Seconds of one micro-batch and the steps after it."""
    batch, step = training.batch(images).to(device), training.loop.steps - 1
    synchronize(device)
    start = time.perf_counter()
    turns = task.turns(batch, StepDraws(0, step, slice(0, images), images, device), step)
    while True:
        with arithmetic(device, training.precision):
            turn = next(turns, None)
        if turn is None:
            break
        with without_autocast(device):
            sum(turn[1].values()).backward()
        optimizers[turn[0]].step()
        optimizers[turn[0]].zero_grad()
    synchronize(device)
    return time.perf_counter() - start
