"""A run under way as one page: how far the line is, what is left, and of each training curves and latest picture."""

import tempfile
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from pipeline.planning.line_progress import (
    LineProgress,
    StageProgress,
    TrainingProgress,
    duration,
    read_progress,
    read_rate,
)
from pipeline.reporting.curves import draw_curves
from pipeline.reporting.held_out_plot import held_out_picture
from pipeline.reporting.page import Picture, document, picture, section
from pipeline.runs.lock import LOCK, holder_of
from pipeline.runs.training_folders import LOG
from pipeline.training.overfitting import FILE as HELD_OUT
from pipeline.training.previews import LATEST


class WatchPage:
    """Renders the page of a run; plots are drawn again when what they show has changed.

    Everything on it is text and pictures: nothing runs in it, and nothing is fetched.
    """

    def __init__(self, run: Path, refresh: int):
        self.run, self.refresh = run.resolve(), refresh
        self.sections: dict[str, tuple[Any, str]] = {}  # by title: the state of its files, and its HTML

    def render(self) -> str:
        """The page as it is now; where a file of the run is damaged, or just moved, a page that says so."""
        try:
            return self.page()
        except (ValueError, OSError) as error:
            said = f"<header><h1>{escape(self.run.name)}</h1><p>{escape(str(error))}</p></header>"
            return document(self.run.name, [said], self.refresh)

    def page(self) -> str:
        line, holder = read_progress(self.run), holder_of(self.run / LOCK)
        name = self.run.name if line is None else line.name
        body = [
            f"<header><p class=kicker>Tessera</p><h1>{escape(name)}</h1><p>{escape(state(line, holder))}</p></header>"
        ]
        if line is not None:
            body.append(section("The line", self.stages(line)))
            body += [self.training(stage, one) for stage in reversed(line.stages) for one in reversed(stage.trainings)]
        footer = f"{self.run}, as it was at {time.strftime('%H:%M:%S')}"
        return document(name, [*body, f"<footer>{escape(footer)}</footer>"], self.refresh)

    def stages(self, line: LineProgress) -> str:
        left = line.left(self.run)
        rows = "".join(self.row(stage) for stage in line.stages)
        said = "" if left is None or not left.seconds else f"<p class=caption>{escape(left.describe())}</p>"
        return f"<ul class=line>{rows}</ul>{said}"

    def row(self, stage: StageProgress) -> str:
        """A stage: how much of its steps is done, and its time or its step."""
        done, text = (1.0 if stage.state == "done" else 0.0), ""
        if stage.state == "done" and stage.seconds is not None:
            text = duration(stage.seconds)
        elif stage.state == "running" and stage.steps:
            steps = sum(min(one.steps, read_rate(self.log(stage, one))[0]) for one in stage.trainings)
            done, text = steps / stage.steps, f"{steps:,} / {stage.steps:,}"
        elif stage.state == "running":
            text = "running"
        elif (seconds := stage.left(self.run)) is not None:
            text = f"~ {duration(seconds)}"
        bar = f'<em><i style="width:{100 * done:.1f}%"></i></em>'
        return f"<li><span>{escape(stage.writes)}</span>{bar}<b>{escape(text)}</b></li>"

    def training(self, stage: StageProgress, training: TrainingProgress) -> str:
        """The section of a training, empty before it has a log or a preview."""
        log, latest = self.log(stage, training), self.within(training.pictures, LATEST)
        files = [log, log.with_name(HELD_OUT), latest]
        now = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.is_file()]
        if stage.state == "waiting" or not now:
            return ""
        known, html = self.sections.get(training.title, (None, ""))
        if known != now:
            with tempfile.TemporaryDirectory() as folder:
                html = section(training.title, "".join(map(picture, pictures(training.title, files, Path(folder)))))
            self.sections[training.title] = now, html
        return html

    def log(self, stage: StageProgress, training: TrainingProgress) -> Path:
        return self.within(stage.folder, training.inside, LOG)

    def within(self, *parts: str) -> Path:
        """A file of the run; ValueError for one outside of it, which a progress file of others may name."""
        path = self.run.joinpath(*parts).resolve()
        if not path.is_relative_to(self.run):
            raise ValueError(f"{self.run} names a file outside of it: {path}")
        return path


def pictures(title: str, files: list[Path], out: Path) -> Iterator[Picture]:
    """Of a training with this log, held-out losses and latest picture: what there is of them; plots go to `out`."""
    log, held_out, latest = files
    if latest.is_file():
        yield Picture(title, f"By the average weights, {age(latest)}.", latest)
    if (plot := held_out_picture(title, title, held_out.parent, out / "held_out.png")) is not None:
        yield plot
    if log.is_file() and draw_curves({title: log}, out / "curves.png"):
        yield Picture(title, "Logged values by optimiser step.", out / "curves.png", wide=True)


def age(file: Path) -> str:
    return f"made at {time.strftime('%H:%M:%S', time.localtime(file.stat().st_mtime))}"


def state(line: LineProgress | None, holder: dict[str, Any] | None) -> str:
    """What is going on in a run, in a line."""
    if line is None:
        return "Nothing has begun yet." if holder is None else "The first stage is about to begin."
    if all(stage.state == "done" for stage in line.stages):
        return "Everything is done."
    if holder is None:
        return "Nothing runs at the moment; the same command continues where it stopped."
    running = [stage for stage in line.stages if stage.state == "running"]
    what = running[-1].name.replace("_", "-") if running else "Between stages"
    return f"{what}, since {holder['since']} by: {holder['command']}"
