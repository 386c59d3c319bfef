"""What each training of a recipe needs of a GPU: weights, gradients, optimiser, averages, and measured activations."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.checks.recipe import CheckedRecipe
from pipeline.components import find
from pipeline.planning.memory import StepMemory, measure_step
from pipeline.planning.shadows import META, NotMeasurable
from pipeline.planning.trainings import PlannedTraining, hidden_modules, planned
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import Recipe
from pipeline.runs.workspace import plain
from pipeline.training.players import checkpoint_blocks
from pipeline.training.task import Task
from pipeline.validation import NotHere

WEIGHT = GRADIENT = AVERAGE = BUCKET = 4  # bytes of a float32
LARGEST_ON_CPU = 400e6  # parameters of a task whose step is computed where it cannot be measured without


@dataclass(frozen=True)
class PlayerSize:
    """The parameters of a player, and the bytes that its optimiser keeps of each that it trains."""

    trained: int
    frozen: int
    optimizer: float

    @property
    def memory(self) -> float:
        """Bytes of weights and averages, and of what is trained gradients and the optimiser's state."""
        return self.trained * (WEIGHT + AVERAGE + GRADIENT + self.optimizer) + self.frozen * (WEIGHT + AVERAGE)

    @property
    def checkpoint(self) -> float:
        return self.trained * (WEIGHT + AVERAGE + self.optimizer) + self.frozen * (WEIGHT + AVERAGE)


@dataclass(frozen=True)
class TrainingNeeds:
    """What a training holds in memory, without what libraries of the device take (about a GB) and fragmentation."""

    place: str
    loop: Loop
    players: dict[str, PlayerSize]
    others: int  # parameters of teachers and other networks that nothing trains
    step: StepMemory | None  # None where it was not measured
    note: str = ""  # how it was measured, or why not

    @property
    def fixed(self) -> float:
        return sum(player.memory for player in self.players.values()) + self.others * WEIGHT

    @property
    def checkpoint(self) -> float:
        """Bytes on disk of one checkpoint."""
        return sum(player.checkpoint for player in self.players.values())

    def images(self, processes: int, accumulate: int | None = None) -> int:
        """Of a micro-batch."""
        return math.ceil(self.loop.batch / (processes * (accumulate or self.loop.accumulate)))

    def held(self, processes: int) -> float:
        """Bytes per process without activations; of several, gradients are once more in what they are exchanged in."""
        trained = sum(player.trained for player in self.players.values())
        return self.fixed + (trained * BUCKET if processes > 1 else 0)

    def memory(self, processes: int, accumulate: int | None = None) -> float:
        """Bytes per process."""
        activations = self.step.of(self.images(processes, accumulate)) if self.step is not None else 0
        return self.held(processes) + activations

    def fitting(self, processes: int, limit: float) -> int | None:
        """The smallest `loop.accumulate` with which it fits into `limit` bytes per process; None where none does."""
        each = self.loop.batch // processes
        divisors = [count for count in range(1, each + 1) if each % count == 0]
        return next((count for count in divisors if self.memory(processes, count) <= limit), None)


def needs_of(recipe: Recipe, checked: CheckedRecipe, classes: int) -> Iterator[TrainingNeeds]:
    """What each training needs, in the order of the line; alike ones are measured once."""
    measured: dict[str, TrainingNeeds] = {}
    for training in planned(recipe, checked, classes):
        alike = kind_of(recipe, training)
        if alike not in measured:
            measured[alike] = measure(training)
        found = measured[alike]
        yield TrainingNeeds(training.place, training.loop, found.players, found.others, found.step, found.note)


def kind_of(recipe: Recipe, training: PlannedTraining) -> str:
    """A text that is the same for phases which differ in numbers that memory does not depend on."""
    if not training.place.startswith("tokenizer.phases."):
        return training.place
    phase = plain(recipe.tokenizer.phases[training.place.removeprefix("tokenizer.phases.")])
    critic = phase["adversary"] and {name: phase["adversary"][name] for name in ("critic", "augmentation", "adaptive")}
    losses = {
        name: {key: of for key, of in node.items() if "margin" not in key} for name, node in phase["losses"].items()
    }
    learns = phase["adversary"] is not None and training.loop.steps > phase["adversary"]["start"]
    of_phase = phase["train"], phase["only"], phase["perturbation"], phase["equivariance"], phase["balance"]
    return repr((losses, critic, learns, of_phase, training.loop.optimizer, training.loop.checkpointing))


def measure(training: PlannedTraining) -> TrainingNeeds:
    """Sizes and activations of a training; measured without content where its task can be, else computed on a CPU.

    Nothing is measured of a task that takes a network whose sizes are not known, or a folder that is not there; no
    activations of a step which reads content and is too large for a CPU. Every other failure of a step is an error.
    """
    try:
        task = ready(training, META)
    except (NotMeasurable, NotHere) as error:
        return TrainingNeeds(training.place, training.loop, {}, 0, None, f"not measured: {error}")
    players = {name: size_of(player, training.loop, name) for name, player in task.players.items()}
    others = frozen_beside(task)
    sizes = training.place, training.loop, players, others
    try:
        return TrainingNeeds(*sizes, measure_step(training, task, META))
    except (NotImplementedError, RuntimeError) as error:
        if not reads_content(error):
            raise
        reason = " ".join(str(error).split())[:100]
    if sum(size.trained + size.frozen for size in players.values()) + others > LARGEST_ON_CPU:
        return TrainingNeeds(*sizes, None, f"activations not measured: {reason}")
    cpu = torch.device("cpu")
    return TrainingNeeds(*sizes, measure_step(training, ready(training, cpu), cpu), "computed on the CPU")


def reads_content(error: Exception) -> bool:
    """Whether a step failed because it reads numbers of tensors that have none: torch names the meta device then."""
    return "meta" in str(error).lower()


def ready(training: PlannedTraining, device: torch.device) -> Task:
    """The task of a training as its loop prepares it."""
    task = training.build(device)
    for player in task.players.values():
        player.train()
        if training.loop.checkpointing:
            checkpoint_blocks(player)
    return task


def size_of(player: nn.Module, loop: Loop, name: str) -> PlayerSize:
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in player.parameters()]
    per_parameter = find("optimizers", loop.optimizer_of(name)["kind"]).bytes_per_parameter
    trained = sum(count for count, learns in counts if learns)
    return PlayerSize(trained, sum(count for count, _ in counts) - trained, per_parameter)


def frozen_beside(task: Task) -> int:
    """Parameters of the networks that losses, critics and encoders take, and that are no part of a player."""
    known = {id(parameter) for player in task.players.values() for parameter in player.parameters()}
    holders = [*task.beside(), *(inner for player in task.players.values() for inner in player.modules())]
    found: dict[int, int] = {}
    for holder in holders:
        for module in (holder, *hidden_modules(holder)):
            for parameter in module.parameters():
                if id(parameter) not in known:
                    found[id(parameter)] = parameter.numel()
    return sum(found.values())
