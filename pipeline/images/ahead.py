"""Reading ahead: batches of images or codes by several processes, in order, and the same as by one."""

import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.images.reading import ImageBatch, Images

Key = TypeVar("Key")
Batch = TypeVar("Batch")
AHEAD = 2  # batches that each process reads before they are asked for


def read_ahead(
    read: Callable[[Key], Batch], keys: Iterable[Key], workers: int, pinned: bool = False
) -> Iterator[Batch]:
    """`read(key)` of every key, in order, to the bit the same whatever the number of `workers`.

    With workers so many processes read ahead of what is asked for; without, this one reads when it is asked. `pinned`
    batches lie in memory that a GPU copies from by itself. An error that a worker meets is raised here as it is, when
    its batch is asked for. `read` has to be picklable where processes do not fork. Raises ChildProcessError where a
    worker was killed.
    """
    if not workers:
        yield from (pin(read(key)) if pinned else read(key) for key in keys)
        return
    loader = DataLoader(
        _Reads(read),
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        pin_memory=pinned,
        worker_init_fn=_leave_signals,
    )
    try:
        for reply in loader:
            if reply.error is not None:
                raise reply.error
            yield widened(reply.batch)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            "a process that reads images was killed, or has no shared memory left; set data.workers lower, or enlarge"
            " /dev/shm"
        ) from error


def read_plain(images: Images, batches: Iterable[Tensor]) -> Iterator[ImageBatch]:
    """`images.plain` of each batch of rows [B], by the collection's workers."""
    return read_ahead(images.plain, batches, images.data.workers)


def read_all(images: Images, rows: Tensor, batch: int = 64) -> ImageBatch:
    """Rows [B] of a collection without augmentation, by its workers."""
    parts = list(read_plain(images, rows.split(batch)))
    conditions = [part.condition for part in parts]
    condition = None if conditions[0] is None else type(conditions[0]).cat(conditions)
    images, rows = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "rows"))
    return ImageBatch(images, condition, rows=rows)


@dataclass
class _Reply:
    """What a worker sends: a batch, or the error that it met instead."""

    batch: Any = None
    error: Exception | None = None

    def pin_memory(self) -> "_Reply":
        return _Reply(pin(self.batch), self.error)


class _Reads(Dataset):
    def __init__(self, read: Callable[[Any], Any]):
        self.read = read

    def __getitem__(self, key: Any) -> _Reply:
        try:
            return _Reply(narrowed(self.read(key)))
        except Exception as error:
            return _Reply(error=error)


def _leave_signals(worker: int) -> None:
    """A worker ends with its parent, which alone decides on a request to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def pin(value: Any) -> Any:
    """The value with every tensor in it in pinned memory."""
    return _mapped(value, lambda name, tensor: tensor.pin_memory())


def narrowed(value: Any) -> Any:
    """The value with `images` of 8 bits as bytes, a quarter as long; others stay, so that `widened` is its inverse."""

    def narrow(name: str, tensor: Tensor) -> Tensor:
        if name != "images" or tensor.dtype != torch.float32:
            return tensor
        pixels = tensor.add(1).mul_(127.5).round_().to(torch.uint8)
        return pixels if torch.equal(as_images(pixels), tensor) else tensor

    return _mapped(value, narrow)


def widened(value: Any) -> Any:
    return _mapped(value, lambda name, x: as_images(x) if name == "images" and x.dtype == torch.uint8 else x)


def as_images(pixels: Tensor) -> Tensor:
    """Pixels uint8 as images in [-1, 1], as `Images` makes them."""
    return pixels.to(torch.float32).div_(127.5).sub_(1)


def _mapped(value: Any, change: Callable[[str, Tensor], Tensor], name: str = "") -> Any:
    if isinstance(value, Tensor):
        return change(name, value)
    if isinstance(value, (list, tuple)):
        return [_mapped(each, change, name) for each in value]
    if isinstance(value, dict):
        return {key: _mapped(each, change, key) for key, each in value.items()}
    if is_dataclass(value):
        return replace(value, **{f.name: _mapped(getattr(value, f.name), change, f.name) for f in fields(value)})
    return value
