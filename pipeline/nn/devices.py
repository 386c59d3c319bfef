"""What a device can do: asked of torch, so that nothing else is decided by the name of a device."""

import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

USE_CPU = "ACCELERATE_USE_CPU"  # Accelerate's own variable
NARROW = (torch.bfloat16, torch.float16)
WITHOUT_MEMORY = ("cpu", "meta")  # devices that computing is not handed to


def uses_cpu() -> bool:
    """Whether this process computes on the CPU: it is asked to, or torch finds no accelerator."""
    return parse_flag_from_env(USE_CPU) or not torch.accelerator.is_available()


def current_device() -> torch.device:
    """The device that this process computes on: an accelerator that torch has, else the CPU."""
    return torch.device("cpu") if uses_cpu() else torch.accelerator.current_accelerator()


def device_count() -> int:
    """The devices that a machine's processes can divide; the CPU is one."""
    return 1 if uses_cpu() else max(1, torch.accelerator.device_count())


def computes_in(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether numbers of this type can lie on the device and be computed there, by trying it."""
    try:
        torch.ones(1, dtype=dtype, device=device).mul_(2)
    except (RuntimeError, TypeError):  # the latter where tensors of the type cannot be on the device
        return False
    return True


def autocast_types(device: torch.device) -> tuple[torch.dtype, ...]:
    """The types of 16 bits that networks are trained in on the device.

    fp16 is none of the CPU's: torch has it there, many times slower than float32 and without all operations.
    """
    types = NARROW[:1] if device.type == "cpu" else NARROW
    return tuple(dtype for dtype in types if _has_autocast(device, dtype) and computes_in(device, dtype))


def _has_autocast(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch casts to the type on the device; where it does not it says so, and would compute in float32."""
    if not torch.amp.is_autocast_available(device.type):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            torch.autocast(device.type, dtype)
        except (RuntimeError, UserWarning):
            return False
    return True


def rounds_products(device: torch.device) -> bool:
    """Whether the word `tf32` changes anything on the device."""
    return device.type == "cuda" and torch.cuda.is_tf32_supported()


def product_type(device: torch.device) -> torch.dtype:
    """The narrowest type in which products of matrices are fast on the device, for what bears rounding."""
    narrow = device.type != "cpu" and torch.bfloat16 in autocast_types(device)
    return torch.bfloat16 if narrow else torch.float32


def has_fused_updates(device: torch.device) -> bool:
    """Whether torch's optimisers update all parameters on the device in one kernel."""
    names = _get_fused_kernels_supported_devices()
    return device.type in [torch._C._get_privateuse1_backend_name() if n == "privateuseone" else n for n in names]


def copies_pinned(device: torch.device) -> bool:
    """Whether copies to the device from pinned memory run beside computing; an Apple GPU shares the CPU's memory."""
    if device.type in (*WITHOUT_MEMORY, "mps"):
        return False
    try:
        return torch.empty(1).pin_memory().is_pinned()
    except (RuntimeError, NotImplementedError):
        return False


def synchronize(device: torch.device) -> None:
    """Wait for all that the device was given to compute."""
    if device.type not in WITHOUT_MEMORY:
        torch.accelerator.synchronize(device)


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes that are free on the device, and all of them; those of the machine where the device shares them."""
    if device.type not in WITHOUT_MEMORY:
        try:
            return torch.accelerator.get_memory_info(device)
        except RuntimeError:  # torch knows none of a device without memory of its own
            pass
    page = os.sysconf("SC_PAGE_SIZE")
    whole = page * os.sysconf("SC_PHYS_PAGES")
    free = page * os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else whole
    return free, whole


def random_states(device: torch.device) -> list[torch.Tensor]:
    """The states of torch's global generators of all accelerators like `device`, that of the CPU apart."""
    if device.type in WITHOUT_MEMORY:
        return []
    module = torch.get_device_module(device)
    return module.get_rng_state_all() if hasattr(module, "get_rng_state_all") else [module.get_rng_state()]


def set_random_states(device: torch.device, states: list[torch.Tensor]) -> None:
    """Put back what `random_states` returned, where there are as many devices as then."""
    if len(states) != len(random_states(device)):
        return
    module = torch.get_device_module(device)
    for number, state in enumerate(states):
        module.set_rng_state(state, torch.device(device.type, number))


@contextmanager
def keep_random_states(device: torch.device) -> Iterator[None]:
    """A block after which torch's global generators, of the CPU and of such devices, are as they were before it."""
    states = torch.get_rng_state(), random_states(device)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        set_random_states(device, states[1])


def device_name(device: torch.device) -> str:
    """The name of an accelerator, or that of the processor and how many threads torch uses of it."""
    if device.type in WITHOUT_MEMORY:
        return f"{_processor()}, {torch.get_num_threads()} threads"
    module, backend = torch.get_device_module(device), getattr(torch.backends, device.type, None)
    if hasattr(module, "get_device_name"):
        return module.get_device_name(device)
    return backend.get_name() if hasattr(backend, "get_name") else device.type


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def describe(device: torch.device) -> str:
    """One line: the device, and what it can do."""
    can = ["fp32", *(["tf32"] if rounds_products(device) else [])]
    words = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    can += [words[dtype] for dtype in autocast_types(device)]
    others = {
        "float64": computes_in(device, torch.float64),
        "fused optimisers": has_fused_updates(device),
        "pinned memory": copies_pinned(device),
    }
    there = [name for name, has in others.items() if has]
    return f"{device.type}, {device_name(device)}: {', '.join(can)}{'; ' if there else ''}{', '.join(there)}"
