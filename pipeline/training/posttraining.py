"""The task of post-training a decoder on codes that the generator made, and the rule by which it stops."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.checks.posttraining import check_decoder_phase
from pipeline.code import Code, Condition
from pipeline.critics.base import Critic
from pipeline.draws import StepDraws
from pipeline.files.writing import new_folder, read_json, write_json
from pipeline.losses.base import Loss
from pipeline.recipes.arithmetic import Precision
from pipeline.recipes.schema import Phase, PostTraining
from pipeline.runs.precision import autocast
from pipeline.tokenizers.base import Tokenizer, TokenizerOutput
from pipeline.training import checkpoints
from pipeline.training.ema import Averages
from pipeline.training.pairs import Pairs
from pipeline.training.reconstruction import Reconstruction
from pipeline.validation import at


class DecoderPlayer(nn.Module):
    """A tokenizer as a player that reads codes at unit scale, and decodes them to images."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, code: Code, condition: Condition | None = None) -> TokenizerOutput:
        return TokenizerOutput(self.tokenizer.decode(code, condition), code, {})


class DecoderTraining(Reconstruction):
    """`Reconstruction` from codes: a batch holds `code` besides `images`, and nothing before the decoder is run.

    Qiu et al., arXiv:2509.12474, section 4.3: real images are the target of every loss, and the real images of the
    critic. All but the decoder, with the layers from the code to it, is frozen, so that codes keep their meaning.
    """

    own_terms = False

    def __init__(self, tokenizer: Tokenizer, phase: Phase, losses: dict[str, Loss], critic: Critic | None = None):
        with at("phase"):
            check_decoder_phase(phase)
        super().__init__(tokenizer, phase, losses, critic)
        self.players["tokenizer"] = DecoderPlayer(tokenizer)

    def rebuild(self, batch: Any, draws: StepDraws, step: int) -> TokenizerOutput:
        return self.players["tokenizer"](batch.code, batch.condition)


@dataclass
class HeldOutError:
    """The error on held-out pairs after one step."""

    step: int
    error: float  # weighted sum of the losses on held-out pairs, of the average weights
    seconds: float  # since the last such check


class EarlyStop:
    """Keeps the decoder with the smallest error on held-out pairs, and ends training when it no longer falls.

    The errors are in `checks.json`, the best tokenizer in `best_folder`, with the checkpoints. A training that resumes
    from an earlier checkpoint forgets the checks after it. It is the `after_step` of a training run.
    """

    def __init__(
        self,
        settings: PostTraining,
        losses: dict[str, Loss],
        held_out: Pairs,
        folder: Path,
        accelerator: Accelerator,
        precision: Precision = "fp32",
    ):
        self.settings, self.losses, self.held_out, self.precision = settings, losses, held_out, precision
        self.folder, self.accelerator = folder, accelerator
        self.best_folder = folder / checkpoints.FOLDER / "best"
        self._file = folder / "checks.json"
        self.checks: list[HeldOutError] = []
        if self._file.exists() and self.best_folder.exists():
            self.checks = [HeldOutError(**check) for check in read_json(self._file)]
        self._since = time.monotonic()

    @property
    def out_of_patience(self) -> bool:
        """Whether no check among the last `patience` had a smaller error than one before them."""
        errors, patience = [check.error for check in self.checks], self.settings.patience
        return len(errors) > patience and min(errors[-patience:]) >= min(errors[:-patience])

    @property
    def best(self) -> HeldOutError:
        """The check whose weights are in `best_folder`: the first with the smallest error."""
        return min(self.checks, key=lambda check: check.error)

    def __call__(self, step: int, averages: Averages) -> bool:
        if step % self.settings.check_every and step != self.settings.phase.loop.steps:
            return False
        self.check(step, averages()["tokenizer"])
        return self.out_of_patience

    def check(self, step: int, player: DecoderPlayer) -> None:
        """Measure the error after `step`, and save these weights where they are the best so far."""
        error = self.error(player)
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        self.checks = [check for check in self.checks if check.step < step] + [HeldOutError(step, error, seconds)]
        if self.accelerator.is_main_process:
            if self.best.step == step:
                with new_folder(self.best_folder) as draft:
                    player.tokenizer.save_pretrained(draft)
            write_json(self._file, [asdict(check) for check in self.checks], indent=1)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def error(self, player: DecoderPlayer) -> float:
        """Weighted sum of the losses, a mean over held-out pairs, which are divided between the processes."""
        accelerator, weights = self.accelerator, self.settings.phase.weights
        mine = torch.arange(accelerator.process_index, len(self.held_out), accelerator.num_processes)
        total = torch.zeros((), device=accelerator.device)
        for indices in mine.split(self.settings.phase.loop.batch):
            batch = self.held_out.plain(indices).to(accelerator.device)
            with autocast(accelerator.device, self.precision):
                rebuilt = player(batch.code, batch.condition)
                for loss in self.losses.values():
                    for name, value in loss(batch.images, rebuilt).items():
                        total += len(batch) * weights[name] * value
        error = float(accelerator.reduce(total, "sum")) / len(self.held_out)
        if not error < float("inf"):
            raise FloatingPointError("the decoder's images of held-out pairs are not finite; lower the rate")
        return error
