"""The optimisers of a training's players, as its loop states them."""

from collections.abc import Collection, Mapping

import torch
from torch import nn

from pipeline.components import build, find
from pipeline.optimizers.base import Grouping, trained
from pipeline.recipes.loops import NEW, Loop
from pipeline.validation import SettingError, at


def make_optimizer(loop: Loop, name: str, player: nn.Module, new: Collection[str] = ()) -> torch.optim.Optimizer:
    """That of the player of this name, for its parameters that need a gradient; `new` are names of those that are new.

    They learn at the rate `new`, where the loop states one.
    """
    rates = dict.fromkeys(new, NEW) if NEW in loop.lr else {}
    grouping = Grouping(loop.decay_of(name), loop.undecayed, rates)
    with at(f"loop.optimizer ({name})"):
        return build("optimizers", loop.optimizer_of(name)).build(player, grouping)


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
