"""The memory of one training step: what is alive at once, measured on tensors without content at two sizes of batch."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as experimental
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pipeline.nn.attention import backend
from pipeline.planning.shadows import AsOnGpus, ShadowDraws, go_back
from pipeline.planning.trainings import PlannedTraining
from pipeline.runs.precision import DTYPES, autocast, without_autocast

SIZES = (1, 2)  # of the batches that are measured
ALL_NONZERO = experimental.patch(meta_nonzero_assume_all_nonzero=True)  # where a shape depends on content, the largest


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all storages that operations inside of the block make, as long as something holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._storages: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_iter(outputs):
            if isinstance(tensor, Tensor):
                self.hold(tensor.untyped_storage())
        return outputs

    def hold(self, storage: torch.UntypedStorage) -> None:
        """Count a storage from now on until nothing holds it; one that is known is not counted twice."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def release(_: Any) -> None:
            self._storages.pop(key, None)
            self.live -= size

        self._storages[key] = weakref.ref(storage, release)
        self.live += size
        self.peak = max(self.peak, self.live)

    def ignore(self, tensors: Any) -> None:
        """Never count these, which were there before."""
        for tensor in tensors:
            self._storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step's activations: those of any batch, and more for each image of a micro-batch."""

    fixed: float
    per_image: float

    def of(self, images: int) -> float:
        return self.fixed + self.per_image * images


def measure_step(training: PlannedTraining, task: Any, device: torch.device) -> StepMemory:
    """The peak of one micro-batch of a task, forwards and backwards, by the line through two sizes of batch.

    Of the last step, in which all players learn. Parameters and their gradients are not in it, nor are teachers.
    """
    low, high = (peak_of(training, task, size, device) for size in SIZES)
    per_image = (high - low) / (SIZES[1] - SIZES[0])
    return StepMemory(low - per_image * SIZES[0], per_image)


def peak_of(training: PlannedTraining, task: Any, images: int, device: torch.device) -> int:
    """Bytes alive at once, of what the step makes; gradients are there already, as for all micro-batches but one."""
    batch, step = training.batch(images).to(device), training.loop.steps - 1
    parameters = [p for player in task.players.values() for p in player.parameters()]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    memory = LiveMemory()
    memory.ignore([*parameters, *(p.grad for p in parameters if p.grad is not None)])
    with backend("sdpa"), ALL_NONZERO, memory, AsOnGpus(DTYPES[training.precision]):
        turns = task.turns(batch, ShadowDraws(images, step, device), step)
        while True:
            with autocast(device, training.precision):
                turn = next(turns, None)
            if turn is None:
                return memory.peak
            with without_autocast(device):
                go_back(sum(turn[1].values()))
            del turn
