"""Keeps the progress of a line while its stages are made, and says what is left of it."""

import logging
import time
from collections.abc import Callable, Collection, Mapping

from pipeline.planning.line_progress import LineProgress
from pipeline.runs.workspace import Workspace, read_note

WORTH_MEASURING = 300.0  # seconds that stages have taken, from which steps of the trainings to come are measured
StepTimes = Callable[[Collection[str]], Mapping[str, float]]  # of trainings by place: seconds of a step, where measured
log = logging.getLogger(__name__)


class LineClock:
    """The progress of a command; it is written where the command has the run, by the main process.

    `measure` is asked once, after stages took five minutes, and of one process: several have other steps.
    """

    def __init__(self, work: Workspace, progress: LineProgress, measure: StepTimes):
        self.work, self.progress, self.measure = work, progress, measure
        self.taken, self.measured = 0.0, work.accelerator.num_processes > 1

    def begin(self, writes: str, folder: str) -> None:
        """A stage begins, in this folder of the run."""
        stage = self.progress.stage(writes)
        stage.state, stage.began, stage.folder = "running", time.time(), folder
        self.write()

    def end(self, writes: str) -> str:
        """A stage is done, now or before; returns what is left as `; about 3 min left`, or nothing where none knows."""
        stage = self.progress.stage(writes)
        if stage.state == "running":
            self.taken += time.time() - stage.began
        seconds = read_note(self.work.root / writes).get("seconds") if self.work.accelerator.is_main_process else None
        stage.state, stage.folder, stage.seconds = "done", writes, seconds
        if self.taken > WORTH_MEASURING and not self.measured:
            self.measure_steps()
        self.write()
        left = self.progress.left(self.work.root)
        return "" if left is None else f"; {left.describe()}"

    def measure_steps(self) -> None:
        """Time a step of the trainings to come that no earlier run says anything of."""
        self.measured = True
        stages = [stage for stage in self.progress.stages if stage.state == "waiting" and stage.earlier is None]
        trainings = {one.place: one for stage in stages for one in stage.trainings if one.steps}
        try:
            found = self.measure(set(trainings)) if trainings else {}
        except (RuntimeError, MemoryError) as error:  # too little memory beside what is there
            log.info("the time of the steps to come was not measured: %s", error)
            return
        for place, seconds in found.items():
            trainings[place].step_seconds = seconds

    def write(self) -> None:
        if self.work.claimed is not None and self.work.accelerator.is_main_process:
            self.progress.write(self.work.root)
