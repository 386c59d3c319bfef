"""Outputs of inner modules while a model runs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def outputs_of(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of the modules of these names while the block runs, by name; the last, of one that is called again.

    Raises AttributeError for a name that no module of the model has.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: outputs.update({name: output})

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in set(names)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
