"""Trackers of experiments, by Accelerate's names: the values and pictures of a training, for those who ask for them."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL.Image import Image

from pipeline.recipes.loops import Loop

PICTURE_OPTIONS = {"tensorboard": {"dataformats": "NHWC"}}  # of `log_images`, by the tracker's name
log = logging.getLogger(__name__)


class Trackers:
    """What the accelerator's trackers are told of one training; without trackers, nothing.

    A tracker that fails while a training is under way is named in the log and told nothing more: the training goes on,
    and metrics.jsonl has all values in any case. Raises ValueError where one cannot begin. Trackers run in the main
    process.
    """

    def __init__(self, accelerator: Accelerator, name: str, loop: Loop):
        self.trackers: list[GeneralTracker] = []
        if not accelerator.log_with:
            return
        facts = {key: value if isinstance(value, (int, float)) else str(value) for key, value in asdict(loop).items()}
        try:
            accelerator.init_trackers(name, facts)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"trackers: one could not begin ({reason}); mend it, or set trackers=[]") from error
        self.trackers, accelerator.trackers = accelerator.trackers, []
        self.without_pictures = [tracker for tracker in self.trackers if not hasattr(tracker, "log_images")]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._tell(lambda tracker: tracker.log(finite, step=step))

    def show(self, step: int, picture: Image) -> None:
        """Log a picture where a tracker takes any."""
        pixels = np.asarray(picture.convert("RGB"))[None]  # [1, H, W, 3]

        def tell(tracker: GeneralTracker) -> None:
            if tracker not in self.without_pictures:
                tracker.log_images({"preview": pixels}, step=step, **PICTURE_OPTIONS.get(tracker.name, {}))

        self._tell(tell)

    def close(self) -> None:
        self._tell(lambda tracker: tracker.finish())
        self.trackers = []

    def _tell(self, tell: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                tell(tracker)
            except Exception as error:
                reason = " ".join(str(error).split())
                log.warning("the tracker %s is told nothing more, since it failed: %s", tracker.name, reason)
                self.trackers.remove(tracker)
