"""How far the line of a run is, and how long it still takes, in a file of its folder that others may read."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.components import structure
from pipeline.files.writing import read_json, write_json
from pipeline.recipes.schema import Recipe
from pipeline.runs.training_folders import LOG, training_folders
from pipeline.runs.workspace import NOTE, read_note
from pipeline.training.journal import logged_lines

FILE = "progress.json"  # in the folder of a run
ROWS = 10  # of a log, the last ones, whose rate is that of the steps to come
State = Literal["waiting", "running", "done"]


@dataclass
class TrainingProgress:
    """A training of a stage."""

    title: str
    place: str  # its section in the recipe
    inside: str  # folder in its stage's
    pictures: str  # folder in the run's
    steps: int
    step_seconds: float | None = None  # of one step, measured before it began; None where it was not


@dataclass
class StageProgress:
    """A stage of the line."""

    name: str
    writes: str
    state: State = "waiting"
    seconds: float | None = None  # that it took
    earlier: float | None = None  # that it took the last time, brought to the steps of this time
    began: float | None = None  # seconds since 1970
    folder: str = ""  # where its files are until it is done
    trainings: list[TrainingProgress] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return sum(training.steps for training in self.trainings)

    def left(self, run: Path) -> float | None:
        """Seconds until it is done; None where nothing is known of it."""
        if self.state == "done":
            return 0.0
        if self.state == "running" and self.trainings:
            return add(self.training_left(run, training) for training in self.trainings)
        if self.earlier is not None:
            return max(0.0, self.earlier - (time.time() - self.began if self.began else 0.0))
        expected = [None if one.step_seconds is None else one.step_seconds * one.steps for one in self.trainings]
        return add(expected) if expected else None

    def training_left(self, run: Path, training: TrainingProgress) -> float | None:
        """Seconds until a training of a stage that runs is done: by its log, else by what a step took."""
        step, rate = read_rate(run / self.folder / training.inside / LOG)
        if step >= training.steps:
            return 0.0
        if rate is not None:
            return (training.steps - step) / rate
        if training.step_seconds is not None:
            return (training.steps - step) * training.step_seconds
        return None if self.earlier is None else self.earlier * (training.steps - step) / self.steps


@dataclass
class LineProgress:
    """The stages that a command goes through, in order."""

    name: str  # of the run
    stages: list[StageProgress]

    def stage(self, writes: str) -> StageProgress:
        return next(stage for stage in self.stages if stage.writes == writes)

    def left(self, run: Path) -> "TimeLeft | None":
        """The time until the line is done; None before anything is known of what is left."""
        times = {stage.name: stage.left(run) for stage in self.stages if stage.state != "done"}
        known = [seconds for seconds in times.values() if seconds is not None]
        if not any(known):
            return None
        return TimeLeft(sum(known), tuple(name for name, seconds in times.items() if seconds is None))

    def write(self, run: Path) -> None:
        write_json(run / FILE, asdict(self), indent=1)


@dataclass(frozen=True)
class TimeLeft:
    """Seconds, without those of stages of which nothing is known."""

    seconds: float
    unknown: tuple[str, ...] = ()

    def describe(self) -> str:
        if not self.unknown:
            return f"about {duration(self.seconds)} left"
        return f"at least {duration(self.seconds)} left; nothing is known yet of {', '.join(self.unknown)}"


def duration(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a line, as the line says it."""

    name: str
    writes: str
    passes_through: bool = False  # what it reads, since the recipe leaves its section out


def plan_line(recipe: Recipe, stages: Sequence[PlannedStage], run: Path) -> LineProgress:
    """The progress of stages before the first: what they took the last time, where there was one."""
    line = []
    for planned in stages:
        name, writes = planned.name, planned.writes
        trainings = [
            TrainingProgress(one.title, one.place, one.inside, one.pictures, one.loop.steps)
            for one in training_folders(recipe)
            if one.artefact == writes
        ]
        stage = StageProgress(name, writes, folder=writes, trainings=trainings)
        stage.earlier = 0.0 if planned.passes_through else earlier_seconds(run / writes, stage.steps)
        line.append(stage)
    return LineProgress(recipe.name, line)


def earlier_seconds(artefact: Path, steps: int) -> float | None:
    """What an artefact took, brought to this number of steps; None where there is none, or it was no such training."""
    if not (artefact / NOTE).is_file():
        return None
    note = read_note(artefact)
    seconds, before = note.get("seconds"), note.get("steps", 0)
    if seconds is None or bool(steps) != bool(before):
        return None
    return seconds * steps / before if steps else seconds


def read_progress(run: Path) -> LineProgress | None:
    """The progress that a run's last command wrote; None where none has. ValueError where it is damaged."""
    file = run / FILE
    return structure(LineProgress, read_json(file), str(file)) if file.is_file() else None


def read_rate(log: Path) -> tuple[int, float | None]:
    """The last step on a training's log, and the steps per second of its last lines, where they say it."""
    lines = logged_lines(log) if log.is_file() else []
    last = lines[-1]["step"] if lines else 0
    counted, taken, before = 0, 0.0, lines[-ROWS - 1]["step"] if len(lines) > ROWS else 0
    for line in lines[-ROWS:]:
        if line.get("rate"):
            counted, taken = counted + line["step"] - before, taken + (line["step"] - before) / line["rate"]
        before = line["step"]
    return last, counted / taken if taken else None


def add(seconds: Iterable[float | None]) -> float | None:
    """Their sum; None where one of them is not known."""
    numbers = list(seconds)
    return None if None in numbers else sum(numbers)
