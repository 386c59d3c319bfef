"""A function run by two processes that average gradients (gloo), for tests that two train as one."""

import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch

Made = TypeVar("Made")
TESTS = Path(__file__).parents[1]
START = """
import importlib, sys
sys.path[:0] = sys.argv[1:4]
import torch
from support import two_processes
train = getattr(importlib.import_module(sys.argv[5]), sys.argv[6])
two_processes.join(sys.argv[4], 1)
train(1)
torch.distributed.barrier()
"""


def as_two(train: Callable[[int], Made], folder: Path) -> Made:
    """What `train(0)` makes here while another process runs `train(1)`; it is a function of a test's module.

    Where the other fails, so does the test, with its errors.
    """
    meeting = str(folder / "meeting")
    paths = [str(TESTS.parent), str(TESTS), str(Path(train.__code__.co_filename).parent)]
    command = [sys.executable, "-c", START, *paths, meeting, train.__module__, train.__name__]
    other = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        join(meeting, 0)
        made = train(0)
        torch.distributed.barrier()
        _, errors = other.communicate(timeout=60)
    except RuntimeError as error:  # the other has not come, or has gone
        other.kill()
        raise AssertionError(other.communicate()[1]) from error
    finally:  # not before the other has gone: it may still be reading what was sent to it
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        other.kill()
    assert other.returncode == 0, errors
    return made


def join(meeting: str, rank: int) -> None:
    """Be process `rank` of the two that meet at the file `meeting`."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
