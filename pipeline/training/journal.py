"""The log of a training: one JSON object per logged step, and a progress bar."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from pipeline.files.writing import write_text
from pipeline.recipes.loops import Loop
from pipeline.training.trackers import Trackers


class Journal:
    """Means of the terms since the last line, in metrics.jsonl; a resumed training continues from its checkpoint.

    `wait` on a line is the fraction of the time since the last one that the main process waited for data, `rate` the
    steps per second.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, first: int, loop: Loop, trackers: Trackers):
        self.accelerator, self.path, self.every = accelerator, folder / "metrics.jsonl", loop.log_every
        self.trackers, self.logged = trackers, first  # the last step that is on a line
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.waited, self.since = 0.0, time.monotonic()
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            self._cut(first)
        self.bar = tqdm(
            total=loop.steps, initial=first, unit="step", dynamic_ncols=True, disable=not accelerator.is_main_process
        )

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach().float()
        self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.counts[name] = self.counts.get(name, 0) + 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time that the block takes as one in which nothing is trained."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    def step(self, step: int, last: bool = False, **values: float) -> None:
        """Count a step; write a line every `every` steps and at the last one."""
        self.bar.update(1)
        if not self.sums or (step % self.every and not last):
            return
        names = sorted(self.sums)
        means = torch.stack([self.sums[name] / self.counts[name] for name in names])
        means = self.accelerator.reduce(means, "mean").tolist()
        now = time.monotonic()
        taken = max(now - self.since, 1e-9)
        values |= {"wait": self.waited / taken, "rate": (step - self.logged) / taken}
        self.logged = step
        self.sums, self.counts, self.waited, self.since = {}, {}, 0.0, now
        if self.accelerator.is_main_process:
            logged = dict(zip(names, means)) | values
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step} | logged) + "\n")
            self.trackers.log(step, logged)
            shown = [(name.rpartition("/")[2], mean) for name, mean in zip(names, means)]
            self.bar.set_postfix_str("  ".join(f"{n} {v:.4g}" for n, v in shown if n != "gradient_norm"))

    def close(self) -> None:
        self.bar.close()
        self.trackers.close()

    def _cut(self, first: int) -> None:
        """Drop lines later than the checkpoint that the training resumes from."""
        if self.path.exists():
            lines = [json.dumps(line) for line in logged_lines(self.path) if line["step"] <= first]
            write_text(self.path, "".join(line + "\n" for line in lines))


def logged_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a training's log, without a half one at its end, which a full disk or a power cut leaves.

    ValueError names a line before it that is damaged.
    """
    lines, values = path.read_bytes().splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            values.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                break
            raise ValueError(f"{path} is damaged in line {number}; delete that line") from None
    return values
