"""Compiling what is trained: the repeated blocks of models, which are functions of tensors, not what draws."""

from typing import Any

import torch
from torch import nn

from pipeline.training.sharding import blocks_of

DYNAMIC = 2  # compilations of a block: for the sizes that it meets first, and for any where these change


def compile_in_place(player: nn.Module, **options: Any) -> None:
    """One compilation for all blocks alike that models in the player name; of a player without any, of all of it.

    `options` are those of `torch.compile`. Blocks of another width are compiled anew, and all once more, then for any
    size, where the number of images, of tokens or of pixels changes between steps: under `token_drop` and
    `equivariance`, and a critic that judges real and rebuilt images together in its own turn.
    """
    blocks = list(blocks_of(player)) or [player]
    limit = DYNAMIC * len(blocks)  # torch's, 8, is of all blocks of a class together; those past it would run as before
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    torch._functorch.config.donated_buffer = False  # adaptive weights go back through one graph more than once
    for block in blocks:
        block.compile(**options)
