"""Whether a training memorises its images: read off the losses and the pictures of its previews."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.files.writing import read_json, write_json

FILE = "held_out.json"
PREVIEWS = 3  # in a row whose held-out loss is above its smallest, while the loss of training images falls
RISE = 0.01  # of the smallest held-out loss, below which a rise says nothing
COPIES = 0.25  # of the samples that are near copies, beyond that of real images, from which it is said


@dataclass(frozen=True)
class Preview:
    """What was measured after one step, of the averaged weights."""

    step: int
    held_out: float | None  # sum of the weighted terms of held-out rows; None where it was not finite
    train: float | None  # of rows that are trained on
    terms: dict[str, float] = field(default_factory=dict)  # of held-out rows, by term
    near_copies: float | None = None  # fraction of the samples that repeat a training image
    near_copies_of_held_out: float | None = None  # the same of real images


@dataclass(frozen=True)
class Overfitting:
    """Since when, and what shows it."""

    step: int  # the last one before it
    why: str

    def describe(self, name: str) -> str:
        return f"{name}: it began to memorise its training images at step {self.step:,}: {self.why}"


def read_previews(folder: Path) -> list[Preview]:
    """The previews of a training's folder, in order; none where it has none."""
    file = folder / FILE
    return [Preview(**row) for row in read_json(file)] if file.is_file() else []


def write_previews(folder: Path, previews: Sequence[Preview]) -> None:
    write_json(folder / FILE, [asdict(preview) for preview in previews], indent=1)


def find_overfitting(previews: Sequence[Preview]) -> Overfitting | None:
    """Where a training began to memorise: by its losses, else by near copies among its samples; None if nowhere.

    By the losses it began at the smallest held-out loss, if each of the last PREVIEWS lies above it by RISE while the
    loss of the training rows has fallen since.
    """
    known = [preview for preview in previews if preview.held_out is not None and preview.train is not None]
    if len(known) > PREVIEWS:
        best = min(known, key=lambda preview: preview.held_out)
        after = known[-PREVIEWS:]
        risen = all(one.step > best.step and one.held_out > best.held_out + RISE * abs(best.held_out) for one in after)
        if risen and after[-1].train < best.train:
            return Overfitting(best.step, describe_losses(best, after[-1]))
    for preview in previews:
        if preview.near_copies is not None and preview.near_copies >= preview.near_copies_of_held_out + COPIES:
            return Overfitting(preview.step, describe_copies(preview))
    return None


def describe_losses(best: Preview, last: Preview) -> str:
    text = (
        f"from there to step {last.step:,} the loss of held-out images rose from {best.held_out:.4g} to"
        f" {last.held_out:.4g}, that of training images fell from {best.train:.4g} to {last.train:.4g}"
    )
    return f"{text}; {describe_copies(last)}" if last.near_copies else text


def describe_copies(preview: Preview) -> str:
    return (
        f"{preview.near_copies:.0%} of its samples are near copies of one training image, of new real images"
        f" {preview.near_copies_of_held_out:.0%}"
    )
