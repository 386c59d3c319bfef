"""An accelerator that no machine has: its tensors are computed by the CPU, and it refuses what an Apple GPU refuses.

`python -m support.fake_accelerator WORDS...` runs a command of the project on it.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "facet"


class Facet(_DummyBackendModule):
    """What torch and Accelerate ask of the module of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None: ...


class OnFacet(Tensor):
    """A tensor of the device: `inner` holds its numbers; of float64 there are none."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnFacet":
        if inner.dtype == torch.float64:
            raise TypeError(f"{NAME} has no float64")
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = Tensor._make_wrapper_subclass(cls, inner.size(), device=torch.device(NAME, 0), **layout)
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    def new_tensor(self, data: Any) -> Tensor:
        return torch.tensor(data, dtype=self.dtype).to(self.device)

    def storage(self) -> Any:
        return self.inner.storage()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, *args, **(kwargs or {}))


def compute(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation on tensors of the device, by the CPU; its results lie on the device, unless it takes them off."""
    device, host = kwargs.get("device"), torch.device("cpu")
    if operation == torch.ops.aten.copy_.default and True in args[2:]:
        raise RuntimeError(f"{NAME} would copy from memory that is not pinned, and may be gone by then")
    if device is not None:
        kwargs = kwargs | {"device": host}
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, OnFacet) else x, (args, kwargs))
    result = operation(*args, **kwargs)
    taken_off = device is not None and torch.device(device) == host
    return result if taken_off else tree_map(lambda x: OnFacet(x) if isinstance(x, Tensor) else x, result)


def install() -> torch.device:
    """Have torch and Accelerate find the device in this process, from now to its end."""
    from accelerate import PartialState

    _setup_privateuseone_for_python_backend(NAME, Facet())
    install.library = torch.library.Library("_", "IMPL")  # kernels go with it
    install.library.fallback(compute, "PrivateUse1")
    of_the_cpu = torch.tensor  # a device written in Python cannot make tensors of lists by itself
    torch.tensor = lambda data, device=None, **options: of_the_cpu(data, **options).to(device or "cpu")
    PartialState.default_device = property(lambda state: torch.device(NAME))
    return torch.device(NAME)


def main() -> None:
    """Run a command of the project on the device."""
    install()
    import run

    sys.exit(run.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
