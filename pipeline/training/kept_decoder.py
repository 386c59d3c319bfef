"""Which decoder of a post-training is kept: the best or the last one, and those after chosen steps besides."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from pipeline.files.writing import new_folder, read_json, write_json
from pipeline.losses.base import Loss
from pipeline.recipes.arithmetic import Precision
from pipeline.recipes.post_training import PostTraining
from pipeline.runs.milestones import milestone
from pipeline.runs.precision import autocast
from pipeline.training import checkpoints
from pipeline.training.ema import Averages
from pipeline.training.pairs import Pairs
from pipeline.training.posttraining import DecoderPlayer


@dataclass
class Check:
    """The error on held-out pairs after one step."""

    step: int
    error: float | None  # weighted sum of the losses, of the average weights in evaluation mode; None without pairs
    seconds: float  # since the last check


class KeptDecoder:
    """Measures held-out pairs, saves the decoder that is kept, and ends training: its `after_step`.

    With `keep: best` that is the decoder with the smallest error, and training ends when the error no longer falls;
    with `last` it is that after the last step, and training takes them all. It lies in `folder`, with the checkpoints;
    the decoders of `milestones` are in `out`. Checks are in `checks.json`; a training that resumes from an earlier
    checkpoint forgets those after it.
    """

    def __init__(
        self,
        settings: PostTraining,
        losses: dict[str, Loss],
        held_out: Pairs,
        out: Path,
        accelerator: Accelerator,
        precision: Precision = "fp32",
    ):
        self.settings, self.losses, self.held_out, self.precision = settings, losses, held_out, precision
        self.out, self.accelerator = out, accelerator
        self.log = out / "posttraining"  # the folder of the training run
        self.folder = self.log / checkpoints.FOLDER / "kept"
        self._file = self.log / "checks.json"
        self.checks: list[Check] = []
        if self._file.exists() and self.folder.exists():
            self.checks = [Check(**check) for check in read_json(self._file)]
        self._since = time.monotonic()

    @property
    def ended(self) -> bool:
        """With `keep: best`, whether no check among the last `patience` had a smaller error than one before them."""
        if self.settings.keep == "last":
            return False
        errors, patience = [check.error for check in self.checks], self.settings.patience
        return len(errors) > patience and min(errors[-patience:]) >= min(errors[:-patience])

    @property
    def kept(self) -> Check:
        """The check whose weights are in `folder`: the last one, or the first with the smallest error."""
        return self.checks[-1] if self.settings.keep == "last" else min(self.checks, key=lambda check: check.error)

    def __call__(self, step: int, averages: Averages) -> bool:
        if step in self.settings.milestones:
            self.save(averages()["tokenizer"], milestone(self.out, step))
        if step % self.settings.check_every and step != self.settings.phase.loop.steps:
            return False
        self.check(step, averages()["tokenizer"])
        return self.ended

    def check(self, step: int, player: DecoderPlayer) -> None:
        """Measure the error after `step`, and save these weights where they are the ones to keep so far."""
        error = self.error(player) if len(self.held_out) else None
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        self.checks = [check for check in self.checks if check.step < step] + [Check(step, error, seconds)]
        if self.kept.step == step:
            self.save(player, self.folder)
        if self.accelerator.is_main_process:
            write_json(self._file, [asdict(check) for check in self.checks], indent=1)
        self.accelerator.wait_for_everyone()

    def save(self, player: DecoderPlayer, folder: Path) -> None:
        if self.accelerator.is_main_process:
            with new_folder(folder) as draft:
                player.tokenizer.save_pretrained(draft)

    @torch.no_grad()
    def error(self, player: DecoderPlayer) -> float:
        """Weighted sum of the losses, a mean over held-out pairs, which are divided between the processes."""
        accelerator, weights = self.accelerator, self.settings.phase.weights
        mine = torch.arange(accelerator.process_index, len(self.held_out), accelerator.num_processes)
        total = torch.zeros((), device=accelerator.device)
        for batch in self.held_out.read(mine.split(self.settings.phase.loop.batch)):
            batch = batch.to(accelerator.device)
            with autocast(accelerator.device, self.precision):
                rebuilt = player(batch.code, batch.condition)
                for loss in self.losses.values():
                    for name, value in loss(batch.images, rebuilt).items():
                        total += len(batch) * weights[name] * value
        error = float(accelerator.reduce(total, "sum")) / len(self.held_out)
        if not error < float("inf"):
            raise FloatingPointError("the decoder's images of held-out pairs are not finite; lower the rate")
        return error
