"""A function run by two processes that average gradients (gloo), for tests that two train as one."""

import importlib
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch

from support.processes import start

Made = TypeVar("Made")


def as_two(train: Callable[[int], Made], folder: Path) -> Made:
    """What `train(0)` makes here while another process runs `train(1)`; it is a function of a test's module.

    Where the other fails, so does the test, with its errors.
    """
    meeting = folder / "meeting"
    place = train.__module__, train.__name__, str(Path(train.__code__.co_filename).parent)
    other = start(take_part, *place, meeting, log=folder / "other")
    try:
        join(meeting, 0)
        made = train(0)
        torch.distributed.barrier()
        other.finish()
    except RuntimeError as error:  # the other has not come, or has gone
        other.wait(5)
        raise AssertionError(other.printed()) from error
    finally:  # not before the other has gone: it may still be reading what was sent to it
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        other.process.kill()
    return made


def take_part(module: str, name: str, folder: str, meeting: Path) -> None:
    """Run the function of a test's module in `folder` as process 1."""
    torch.set_num_threads(1)
    sys.path.insert(0, folder)
    train = getattr(importlib.import_module(module), name)
    join(meeting, 1)
    train(1)
    torch.distributed.barrier()


def join(meeting: Path, rank: int) -> None:
    """Be process `rank` of the two that meet at the file `meeting`."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
