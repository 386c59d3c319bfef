"""What a process of several knows of the others."""

import torch.distributed

BROKEN = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


def is_lost_connection(error: Exception) -> bool:
    """Whether an error says that another process of this command has ended, or cannot be reached any more."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in BROKEN)
