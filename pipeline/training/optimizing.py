"""The optimisers of a training's players, as its loop states them."""

from collections.abc import Mapping

import torch
from torch import nn

from pipeline.components import build, find
from pipeline.optimizers.base import Decay, trained
from pipeline.recipes.loops import Loop
from pipeline.validation import SettingError, at


def make_optimizer(loop: Loop, name: str, player: nn.Module) -> torch.optim.Optimizer:
    """That of the player of this name, for its parameters that need a gradient."""
    with at(f"loop.optimizer ({name})"):
        return build("optimizers", loop.optimizer_of(name)).build(player, Decay(loop.decay_of(name), loop.undecayed))


def check_divisible(loop: Loop, name: str) -> None:
    """SettingError where the optimiser of the player of this name needs whole parameters."""
    kind = loop.optimizer_of(name)["kind"]
    if not find("optimizers", kind).updates_parts:
        raise SettingError(
            "optimizer", f": {kind} ({name}) needs whole parameters; launch without FSDP, or take adamw or muon"
        )


def check_undecayed(loop: Loop, players: Mapping[str, nn.Module]) -> None:
    """SettingError where a name without decay is a part of no trained parameter's name."""
    names = [name for player in players.values() for name, _ in trained(player)]
    for part in loop.undecayed:
        if not any(part in name for name in names):
            raise SettingError("undecayed", f": no trained parameter has {part!r} in its name; take it out")
