"""Checkpoints of a training under way: written whole, the last few kept, never published."""

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.training.ema import Average
from pipeline.whole_files import replace_folder

FOLDER = "checkpoints"


class Progress:
    """All that a resumed training needs besides the players and optimisers, which accelerate saves."""

    def __init__(self, averages: dict[str, Average]):
        self.step, self.skipped, self.averages = 0, 0, averages

    def modules(self) -> dict[str, nn.Module]:
        """The average of every player."""
        return {name: average.module for name, average in self.averages.items()}

    def state_dict(self) -> dict[str, Any]:
        averages = {name: average.module.state_dict() for name, average in self.averages.items()}
        return {"step": self.step, "skipped": self.skipped, "averages": averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.skipped = state["step"], state["skipped"]
        for name, weights in state["averages"].items():
            self.averages[name].module.load_state_dict(weights)


def save(accelerator: Accelerator, folder: Path, progress: Progress, players: dict[str, nn.Module], keep: int) -> None:
    """Write `step_00000500/` under another name, rename it once complete, and remove all but the last `keep`."""
    assert_equal_ranks(accelerator, players)
    draft = folder / FOLDER / f"draft_{progress.step:08d}"
    accelerator.save_state(str(draft), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        final = folder / FOLDER / f"step_{progress.step:08d}"
        replace_folder(draft, final)
        for old in finished(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def restore(accelerator: Accelerator, folder: Path) -> None:
    """Load the newest checkpoint in `folder`, if there is one, into all that accelerate was given."""
    if accelerator.is_main_process:
        for draft in (folder / FOLDER).glob("draft_*"):
            shutil.rmtree(draft)
    accelerator.wait_for_everyone()
    if complete := finished(folder):
        accelerator.load_state(str(complete[-1]))


def finished(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((folder / FOLDER).glob("step_*"))


def assert_equal_ranks(accelerator: Accelerator, players: dict[str, nn.Module]) -> None:
    """RuntimeError when the processes do not hold the same weights."""
    if accelerator.num_processes == 1:
        return
    for name, player in players.items():
        sums = torch.stack([p.detach().double().abs().sum() for p in player.parameters()])
        everyone = accelerator.gather(sums[None])
        if not torch.equal(everyone, everyone[:1].expand_as(everyone)):
            raise RuntimeError(f"the processes' copies of the {name} have drifted apart; nothing was saved")
