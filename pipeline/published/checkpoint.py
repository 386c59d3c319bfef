"""Reads other projects' weight files safely, and fits their keys to our models without losing or inventing any."""

import argparse
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

CONTAINERS = ("ema", "model_ema", "model", "state_dict")  # where training files keep the weights, the preferred first
PREFIXES = ("module.", "_orig_mod.")  # what DDP and torch.compile put before every key


def read(path: str | Path) -> dict[str, Tensor]:
    """The bare state of a .safetensors or torch file, on the CPU: containers unwrapped, wrappers' prefixes taken off.

    Averaged weights are preferred where a file holds both. Torch files are read with weights_only, so nothing in them
    runs. Raises ValueError when the file is not there, not safe, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    state = _load(path)
    while inner := next((state[name] for name in CONTAINERS if isinstance(state.get(name), Mapping)), None):
        state = inner
    state = {_strip(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no weights; expected tensors, bare or under one of: {', '.join(CONTAINERS)}")
    return state


def read_parts(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Every part of a training file that holds tensors by name (model, ema, vae, ...), as `read` would leave it.

    Optimisers and arguments are no such parts. Raises ValueError as `read` does.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    parts = {}
    for name, part in _load(path).items():
        if isinstance(part, Mapping) and (tensors := {k: v for k, v in part.items() if isinstance(v, Tensor)}):
            parts[name] = {_strip(key): value for key, value in tensors.items()}
    if not parts:
        raise ValueError(f"{path} holds no parts that are weights; a training file of several models does")
    return parts


def rename(state: Mapping[str, Tensor], names: Mapping[str, str], dropped: Iterable[str] = ()) -> dict[str, Tensor]:
    """`state` under our keys: each key must match one regular expression of `names` or of `dropped` in full.

    `names` maps patterns to replacements (`r"mlp\\.fc1\\.(.*)": r"up.\\1"`); `dropped` are
    patterns of what only training or a fixed table needs. Raises ValueError naming the first keys that match neither.
    """
    renamed, unexpected, dropped = {}, [], list(dropped)
    for key, value in state.items():
        pattern = next((p for p in names if re.fullmatch(p, key)), None)
        if pattern is not None:
            renamed[re.sub(pattern, names[pattern], key)] = value
        elif not any(re.fullmatch(p, key) for p in dropped):
            unexpected.append(key)
    if unexpected:
        raise ValueError(f"{len(unexpected)} unexpected keys in the checkpoint: {_first(unexpected)}")
    return renamed


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """`model` with exactly these weights, in evaluation mode; ValueError names missing, left-over or misshapen ones."""
    needed = model.state_dict()
    if missing := [key for key in needed if key not in state]:
        raise ValueError(f"{len(missing)} weights are missing from the checkpoint: {_first(missing)}")
    if extra := [key for key in state if key not in needed]:
        raise ValueError(f"the checkpoint has {len(extra)} weights that the model lacks: {_first(extra)}")
    for key, value in needed.items():
        if value.shape != state[key].shape:
            raise ValueError(
                f"{key} is {list(state[key].shape)} in the checkpoint and {list(value.shape)} in the model"
            )
    model.load_state_dict(state)
    return model.eval()


def need(state: Mapping[str, Tensor], key: str, what: str) -> Tensor:
    """state[key], or ValueError saying that this is not a checkpoint of the format `what`."""
    if key not in state:
        raise ValueError(f"not a {what} checkpoint: it has no {key}; its keys begin with {_first(list(state))}")
    return state[key]


def heads_of(width: int, published: Mapping[int, int], name: str = "heads") -> int:
    """Attention heads by width, as `published` has them, where no weight tells; ValueError for another width."""
    if width not in published:
        known = ", ".join(map(str, published))
        raise ValueError(
            f"the number of heads of width {width} cannot be told from the weights (known: {known}); state {name}="
        )
    return published[width]


def with_null_row(table: Tensor, condition_drop: float) -> Tensor:
    """A label table [classes (+ 1), width] whose last row is that of the dropped label.

    A model trained with a class dropout of 0 has no such row; it is zero here, and there is nothing to guide away from.
    """
    return table if condition_drop else torch.cat([table, torch.zeros_like(table[:1])])


def ratio_of(hidden: int, width: int) -> float:
    """The feed_forward_ratio r for which int(width r) is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _load(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # DiT's training files keep their arguments
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as plain weights ({reason}); convert it to safetensors first"
        ) from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a mapping of weights")
    return state


def _strip(key: str) -> str:
    while prefix := next((p for p in PREFIXES if key.startswith(p)), None):
        key = key.removeprefix(prefix)
    return key


def _first(keys: list[str], shown: int = 3) -> str:
    return ", ".join(keys[:shown]) + (", ..." if len(keys) > shown else "")
