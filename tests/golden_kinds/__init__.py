"""One file a kind of published case: how this project computes what the case stores.

A kind states `MATCHES`, the beginning of `class` in the case's meta.json (the longest match wins), and
`outputs(case) -> dict[str, Tensor]`, whose names are those of the stored outputs without their "output." prefix.
Everything is read from the case: shapes from its tensors, switches from `case.meta["constructor"]`, scales and counts
from the words of its calls (`case.number`). Weights are imported as a user would import them: `case.imported`.

Optional: `REPOSITORY`, the end of `source.repository`, where several projects have a class of this name;
`NOT_OURS = {name pattern: reason}` for stored outputs that this project has no counterpart of, or `not_ours(case)`
where that depends on the case; and
`LOOSER = {name pattern: tolerance}` where meta.json gives an exception in words.
"""

import importlib
import json
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.published import converted


@dataclass
class Case:
    """A folder with meta.json, io.safetensors and (mostly) state.safetensors."""

    folder: Path
    meta: dict = field(init=False)

    def __post_init__(self):
        self.meta = json.loads((self.folder / "meta.json").read_text())

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The parameters under their published names, floats as float32."""
        path = self.folder / "state.safetensors"
        values = load_file(path) if path.exists() else {}
        return {name: value.float() if value.is_floating_point() else value for name, value in values.items()}

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return self._tensors("input.")

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        return self._tensors("output.")

    def stored_names(self) -> list[str]:
        """Names of the stored outputs, without reading them."""
        return [name.removeprefix("output.") for name in self.meta["io"]["tensors"] if name.startswith("output.")]

    def imported(self, name: str, state: dict[str, Tensor] | None = None, **options: object) -> dict[str, Any]:
        """What `python run.py import NAME FILE OUT KEY=VALUE ...` makes of the state; None leaves an option out."""
        words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in options.items()}
        overrides = [f"{key}={words[key]}" for key, value in options.items() if value is not None]
        return converted(name, self.state if state is None else state, overrides)

    def call(self, *words: str) -> str:
        """The text (call and description) of the first call whose text holds all `words`, whatever their case."""
        for call in self.meta["calls"]:
            text = f"{call['call']}; {call.get('description', '')}"
            if all(word.lower() in text.lower() for word in words):
                return text
        raise ValueError(f"{self.folder.name}: no call mentions {', '.join(words)}")

    def number(self, name: str, *words: str) -> float:
        """`number("cfg_scale", "forward_with_cfg")` is 4.0 where that call's text says cfg_scale=4.0."""
        found = re.search(rf"{re.escape(name)}\s*=\s*([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)", self.call(*words))
        if found is None:
            raise ValueError(f"{self.folder.name}: the call on {', '.join(words)} does not state {name}")
        return float(found.group(1))

    def _tensors(self, prefix: str) -> dict[str, Tensor]:
        values = load_file(self.folder / "io.safetensors")
        return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def kind_of(case: Case) -> ModuleType | None:
    """The module whose MATCHES is the longest beginning of the case's class; None when the kind is not known.

    One with a REPOSITORY is for cases of that project alone.
    """
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    repository = case.meta.get("source", {}).get("repository", "")
    fitting = [
        module
        for module in modules
        if case.meta["class"].startswith(module.MATCHES)
        and repository.removesuffix(".git").endswith(getattr(module, "REPOSITORY", ""))
    ]
    return max(fitting, key=lambda module: len(module.MATCHES), default=None)


def sequence(images: Tensor) -> Tensor:
    """[..., C, H, W] to [..., H * W, C]."""
    return images.flatten(-2).transpose(-1, -2)


def grid(codes: Tensor, height: int, width: int) -> Tensor:
    """[..., H * W, C] to [..., C, H, W]."""
    return codes.transpose(-1, -2).unflatten(-1, (height, width))


def bare(network: torch.nn.Module) -> torch.nn.Module:
    """As the cases were made: eval mode, float32."""
    return network.eval().float()


def split_projections(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What lies below `prefix`, without it, with queries, keys and values of attention in tensors of their own."""
    below = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    for key in [key for key in below if ".attn.qkv." in key]:
        for part, value in zip("qkv", below.pop(key).chunk(3)):
            below[key.replace("qkv", part)] = value
    return below
