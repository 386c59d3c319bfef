"""Average weights of a generator that are kept after chosen steps, for AutoGuidance."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from pipeline.runs.milestones import milestone
from pipeline.training.ema import Averages
from pipeline.training.loss_heads import detach_heads
from pipeline.training.tuning import merged


@dataclass
class Milestones:
    """Saves a network's average weights after chosen steps; the `after_step` of a training run, which it never ends."""

    steps: tuple[int, ...]
    folder: Path
    accelerator: Accelerator

    def __call__(self, step: int, averages: Averages) -> bool:
        if step in self.steps:
            network, _ = detach_heads(averages()["network"])
            if self.accelerator.is_main_process:
                merged(network).save_pretrained(milestone(self.folder, step))
        return False
