"""Whether the launcher of this command asks for players that are divided among its processes."""

import os
from dataclasses import dataclass

from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import CPUOffloadPolicy

ASKED = "ACCELERATE_USE_FSDP"


@dataclass(frozen=True)
class Sharding:
    """How the blocks of players are divided."""

    reshard_after_forward: bool = True  # a block is let go after the forward pass and fetched again for the backward


def take_sharding() -> Sharding | None:
    """What `accelerate launch --use_fsdp --fsdp_version 2` asks for, or its environment variables; None without them.

    The request is taken from the environment: an Accelerator that found it would prepare one model alone, which none
    of the trainings of several players can use. Raises ValueError for what is not supported.
    """
    if os.environ.pop(ASKED, "false").lower() not in ("1", "true", "yes", "y", "t", "on"):
        return None
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError("sharded training is by FSDP 2 here: launch with --fsdp_version 2, or set FSDP_VERSION=2")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError("parameters are not moved to the CPU here: launch with --fsdp_offload_params false")
    return Sharding(bool(plugin.reshard_after_forward))
