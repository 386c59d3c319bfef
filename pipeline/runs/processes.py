"""What a process of several knows of the others, and leaves to the main one."""

from collections.abc import Callable

import torch
import torch.distributed
from accelerate import Accelerator

BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def is_lost_connection(error: Exception) -> bool:
    """Whether an error says that another process of this command has ended, or cannot be reached any more."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    if isinstance(error, torch.distributed.DistError):
        return True
    used = torch.distributed.get_backend()  # gloo, or cuda:nccl,cpu:gloo
    marks = [*(name for name in torch.distributed.Backend.backend_list if name in used), *BROKEN]
    return isinstance(error, RuntimeError) and any(mark.lower() in str(error).lower() for mark in marks)


def on_main(accelerator: Accelerator, do: Callable[[], object]) -> None:
    """Have the main process do something, and the others wait; where it fails there, they end, too."""
    error = None
    if accelerator.is_main_process:
        try:
            do()
        except Exception as raised:
            error = raised
    failed = error is not None
    if accelerator.num_processes > 1:
        failed = bool(accelerator.reduce(torch.tensor(float(failed), device=accelerator.device), "sum") > 0)
    if error is not None:
        raise error
    if failed:
        raise SystemExit(2)  # the main process says why
