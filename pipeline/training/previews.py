"""What is shown of a training under way: pictures and held-out losses of its averaged weights, and an early stop."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import Accelerator
from PIL.Image import Image
from safetensors.torch import load_file
from torch import nn

from pipeline.files.writing import new_file, new_folder, remove, write_tensors
from pipeline.nn.devices import keep_random_states
from pipeline.nn.finite import NotFinite
from pipeline.recipes.loops import Loop
from pipeline.training import checkpoints
from pipeline.training.ema import Averages
from pipeline.training.held_out import Measuring, Rows
from pipeline.training.overfitting import Preview, find_overfitting, read_previews, write_previews
from pipeline.training.trackers import Trackers

LATEST = "latest.png"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreviewPicture:
    """What the averaged weights make, and what was counted of it."""

    image: Image
    near_copies: tuple[float, float] | None = None  # fractions of samples, and of real images; see `Preview`


@dataclass(frozen=True)
class PreviewSources:
    """What a training's previews are made of; its stage gives it."""

    name: str  # of what is trained, in lines and folders
    train: Rows  # some of what it is trained on
    held_out: Rows
    draw: Callable[[Mapping[str, nn.Module]], PreviewPicture]  # by the averages of all players; the main process asks
    pictures: Path  # folder of pictures, which later trainings of this name begin anew


@dataclass
class Previews:
    """The previews of one training, which its loop calls after every step; without `sources` there are none.

    They change nothing that is trained, nor what it draws at random. With `loop.early_stop` they also end the training,
    and keep the averages of the smallest held-out loss in the folder of checkpoints. A training that resumes from an
    earlier checkpoint forgets those after it.
    """

    sources: PreviewSources | None
    loop: Loop
    folder: Path  # of the training
    measuring: Measuring
    trackers: Trackers
    first: int  # steps that are done already
    rows: list[Preview] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.sources is None:
            return
        self.rows = [row for row in read_previews(self.folder) if row.step <= self.first]
        if self.accelerator.is_main_process and not self.first:
            remove(self.sources.pictures)
        self.accelerator.wait_for_everyone()

    @property
    def accelerator(self) -> Accelerator:
        return self.measuring.accelerator

    @property
    def best_folder(self) -> Path:
        return self.folder / checkpoints.FOLDER / "best"

    @property
    def of_early_stop(self) -> list[Preview]:
        """Those that the early stop goes by."""
        stop = self.loop.early_stop
        return [] if stop is None else [row for row in self.rows if is_due(row.step, stop.every, self.loop.steps)]

    @property
    def ended(self) -> bool:
        """Whether, with an early stop, none of the last `patience` held-out losses was smaller than one before them."""
        losses = [loss_of(row) for row in self.of_early_stop]
        patience = self.loop.early_stop.patience if losses else 0
        return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])

    def __call__(self, step: int, averages: Averages) -> bool:
        """Look, where it is time to, after `step`; whether training ends."""
        if self.sources is None:
            return False
        stop, steps = self.loop.early_stop, self.loop.steps
        shown = is_due(step, self.loop.preview_every, steps)
        may_stop = stop is not None and is_due(step, stop.every, steps)
        if shown or may_stop:
            with keep_random_states(self.accelerator.device):
                self.look(step, averages(), shown)
        return may_stop and self.ended

    def look(self, step: int, averages: Mapping[str, nn.Module], shown: bool) -> None:
        """Measure the losses after `step`, draw a picture where it is shown, and keep the weights if they are best."""
        terms, of_train = (self.measuring.terms(averages, rows) for rows in (self.sources.held_out, self.sources.train))
        preview = Preview(step, total(terms), total(of_train), {n: v for n, v in terms.items() if math.isfinite(v)})
        if shown and self.accelerator.is_main_process:
            preview = self.show(preview, averages)
        overfitted = find_overfitting(self.rows) is not None
        self.rows.append(preview)
        best = self.of_early_stop and min(self.of_early_stop, key=loss_of) is preview
        if self.accelerator.is_main_process:
            if best:
                save_averages(self.best_folder, averages)
            write_previews(self.folder, self.rows)
            self.trackers.log(step, values_of(preview))
            if not overfitted and (found := find_overfitting(self.rows)) is not None:
                log.warning(found.describe(self.sources.name))
        self.accelerator.wait_for_everyone()

    def show(self, preview: Preview, averages: Mapping[str, nn.Module]) -> Preview:
        """Write the picture of a step, and as the latest one; where the weights make none, the log says why."""
        try:
            picture = self.sources.draw(averages)
        except NotFinite as error:
            log.warning("%s: no picture after step %d: %s", self.sources.name, preview.step, error)
            return preview
        for name in (f"step_{preview.step:08d}.png", LATEST):
            with new_file(self.sources.pictures / name) as draft:
                picture.image.save(draft)
        self.trackers.show(preview.step, picture.image)
        if picture.near_copies is None:
            return preview
        of_samples, of_held_out = picture.near_copies
        return replace(preview, near_copies=of_samples, near_copies_of_held_out=of_held_out)

    def restore_best(self, step: int, averages: Mapping[str, nn.Module]) -> None:
        """With an early stop: the averages of the smallest held-out loss in place of those of the last `step`."""
        if not self.of_early_stop:
            return
        best = min(self.of_early_stop, key=loss_of)
        if best.step != step:
            for name, average in averages.items():
                checkpoints.load_weights(average, load_file(self.best_folder / f"{name}.safetensors"))
        if self.accelerator.is_main_process:
            kept = f"kept are the average weights of step {best.step:,}, with a held-out loss of {loss_of(best):.4g}"
            log.warning("%s: training ended after step %d; %s", self.sources.name, step, kept)


def values_of(preview: Preview) -> dict[str, float]:
    """Its numbers by name, as trackers are told them."""
    values = {"held_out": preview.held_out, "held_out_train": preview.train, "near_copies": preview.near_copies}
    return {name: value for name, value in values.items() if value is not None}


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether it is time after `step`: every so many steps, and after the last one."""
    return bool(every) and (step % every == 0 or step == steps)


def total(terms: Mapping[str, float]) -> float | None:
    value = math.fsum(terms.values())
    return value if math.isfinite(value) else None


def loss_of(preview: Preview) -> float:
    return math.inf if preview.held_out is None else preview.held_out


def save_averages(folder: Path, averages: Mapping[str, nn.Module]) -> None:
    """One file a player, the folder whole or not at all."""
    with new_folder(folder) as draft:
        for name, average in averages.items():
            write_tensors(draft / f"{name}.safetensors", checkpoints.separate(average.state_dict()))
