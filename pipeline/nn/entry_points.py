"""Methods that read a module's weights outside of `forward`, made to run wherever hooks keep those weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Entry:
    """The first argument of a `forward` that is to run another method."""

    method: Callable[..., Any]


def forward_of_entries(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, or the method of an `Entry` in its place."""

    @wraps(forward)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        method = forward
        if args and isinstance(args[0], Entry):
            method, args = args[0].method, args[1:]
        if self._entered or not is_hooked(self):
            return method(self, *args, **kwargs)
        self._entered = True
        try:
            return method(self, *args, **kwargs)
        finally:
            self._entered = False

    return run


def through_forward(method: Callable[..., Any]) -> Callable[..., Any]:
    """`method`, run through the `forward` of a hooked module unless that is running already."""

    @wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self._entered or not is_hooked(self):
            return method(self, *args, **kwargs)
        return self.forward(Entry(method), *args, **kwargs)

    return run


def is_hooked(module: nn.Module) -> bool:
    """Whether `forward` is wrapped on the instance, as hooks of accelerate and of diffusers do."""
    return "forward" in module.__dict__


class EntryPoints(nn.Module):
    """A module whose methods named in `entry_points` find its weights in place, as `forward` does.

    Offloading by accelerate and by diffusers wraps the `forward` of a module on the instance and brings the weights
    before it runs. Where that has happened, an entry point is run through the wrapped `forward`, so that whatever is
    done for `forward` is done for it too. Subclasses override `forward` and entry points as usual.
    """

    entry_points: tuple[str, ...] = ()
    _entered: bool = False  # whether `forward` or an entry point is running under hooks, so that the weights are here

    def __init_subclass__(cls, **arguments: Any):
        super().__init_subclass__(**arguments)
        if "forward" in vars(cls):
            cls.forward = forward_of_entries(cls.forward)
        for name in {name for base in cls.__mro__ for name in vars(base).get("entry_points", ())}:
            if name in vars(cls):
                setattr(cls, name, through_forward(vars(cls)[name]))

    @forward_of_entries
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward; call one of {', '.join(self.entry_points)}")
