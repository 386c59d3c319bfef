"""The task of post-training a decoder on what the generator makes, and the rule by which it stops."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.code import Code, Condition
from pipeline.critics.base import Critic
from pipeline.draws import StepDraws
from pipeline.losses.base import Loss
from pipeline.recipes.schema import Phase, PostTraining
from pipeline.tokenizers.base import Rebuilt, Tokenizer
from pipeline.training import checkpoints
from pipeline.training.pairs import Pairs
from pipeline.training.reconstruction import Reconstruction
from pipeline.whole_files import new_folder, write_json


class FromCode(nn.Module):
    """A tokenizer as a player that is given codes at unit scale, and makes images of them."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, code: Code, condition: Condition | None = None) -> Rebuilt:
        return Rebuilt(self.tokenizer.decode(code, condition), code, {})


class DecoderTraining(Reconstruction):
    """`Reconstruction` from codes: a batch holds `code` besides `images`, and nothing before the decoder is run.

    Qiu et al., arXiv:2509.12474, section 4.3: real images are the target of every loss and what the critic takes for
    real. All but the decoder, with what leads from the code to it, is frozen; so no code ever changes its meaning.
    """

    own_terms = False

    def __init__(self, tokenizer: Tokenizer, phase: Phase, losses: dict[str, Loss], critic: Critic | None = None):
        super().__init__(tokenizer, phase, losses, critic)
        self.players["tokenizer"] = FromCode(tokenizer)

    def rebuild(self, batch: Any, draws: StepDraws, step: int) -> Rebuilt:
        return self.players["tokenizer"](batch.code, batch.condition)


@dataclass
class Check:
    """The state of a training at one step."""

    step: int
    error: float  # weighted sum of the losses on held-out pairs, of the average weights
    seconds: float  # since the check before


class EarlyStop:
    """Keeps the decoder with the smallest error on held-out pairs, and says when to stop looking for a better one.

    What was seen is in `checks.json`, the best tokenizer in `best`, with the checkpoints. A training that goes on from
    an earlier checkpoint forgets the checks after it. Asked as the `until` of `pipeline.training.loop.train`.
    """

    def __init__(
        self, part: PostTraining, losses: dict[str, Loss], held_out: Pairs, folder: Path, accelerator: Accelerator
    ):
        self.part, self.losses, self.held_out = part, losses, held_out
        self.folder, self.accelerator = folder, accelerator
        self.best = folder / checkpoints.FOLDER / "best"
        self._file = folder / "checks.json"
        self.checks: list[Check] = []
        if self._file.exists() and self.best.exists():
            self.checks = [Check(**check) for check in json.loads(self._file.read_text())]
        self._since = time.monotonic()

    @property
    def reached(self) -> bool:
        """Whether no check among the last `patience` had a smaller error than one before them."""
        errors, patience = [check.error for check in self.checks], self.part.patience
        return len(errors) > patience and min(errors[-patience:]) >= min(errors[:-patience])

    @property
    def kept(self) -> Check:
        """The check whose weights are in `best/`: the first with the smallest error."""
        return min(self.checks, key=lambda check: check.error)

    def __call__(self, step: int, averages: dict[str, nn.Module]) -> bool:
        if step % self.part.check_every and step != self.part.phase.loop.steps:
            return False
        self.check(step, averages["tokenizer"])
        return self.reached

    def check(self, step: int, player: FromCode) -> None:
        """Measure the error after `step`, and keep these weights where they are the best so far."""
        error = self.error(player)
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        self.checks = [check for check in self.checks if check.step < step] + [Check(step, error, seconds)]
        if self.accelerator.is_main_process:
            if self.kept.step == step:
                with new_folder(self.best) as draft:
                    player.tokenizer.save_pretrained(draft)
            write_json(self._file, [asdict(check) for check in self.checks], indent=1)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def error(self, player: FromCode) -> float:
        """Weighted sum of the losses, a mean over held-out pairs; each process looks at its share of them."""
        accelerator, weights = self.accelerator, self.part.phase.weights
        mine = torch.arange(accelerator.process_index, len(self.held_out), accelerator.num_processes)
        total = torch.zeros((), device=accelerator.device)
        for indices in mine.split(self.part.phase.loop.batch):
            batch = self.held_out.plain(indices).to(accelerator.device)
            rebuilt = player(batch.code, batch.condition)
            for loss in self.losses.values():
                for name, value in loss(batch.images, rebuilt).items():
                    total += len(batch) * weights[name] * value
        error = float(accelerator.reduce(total, "sum")) / len(self.held_out)
        if not error < float("inf"):
            raise FloatingPointError("the decoder's images of held-out pairs are not finite; lower the rate")
        return error
