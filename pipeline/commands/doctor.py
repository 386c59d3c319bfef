"""`doctor`: what this machine has, and what to do about what it lacks."""

import importlib.metadata
import importlib.util
import os
import shutil

import torch

from pipeline.nn.devices import USE_CPU, current_device, describe, device_count
from pipeline.vision.weights import table

PACKAGES = ("torch", "diffusers", "accelerate", "transformers", "datasets", "omegaconf", "safetensors", "scikit-learn")


def examine(words: list[str]) -> int:
    """Print packages, devices, weight files with their sources, and known troubles.

    The exit status is 1 when something stands in the way of the other commands, else 0.
    """
    troubles = []
    for name in PACKAGES:
        print(f"{name:<16}{version(name)}")
    print(f"{'xformers':<16}{version('xformers')} (optional)")
    if trouble := broken_torchvision():
        troubles.append(trouble)
    cpu = os.environ.get(USE_CPU, "not set")
    print(f"\n{'device':<16}{describe(current_device())}")
    print(f"{'devices':<16}{device_count()} ({USE_CPU}: {cpu}; true leaves accelerators alone)")
    print(f"{'CPU threads':<16}{torch.get_num_threads()} of {os.cpu_count()}")
    free = shutil.disk_usage(".").free
    print(f"{'disk, free':<16}{free / 1e9:.0f} GB")
    print("\nweights (TESSERA_WEIGHTS: " + os.environ.get("TESSERA_WEIGHTS", "not set") + ")")
    print(table())
    for trouble in troubles:
        print(f"\ntrouble: {trouble}")
    return 1 if troubles else 0


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def broken_torchvision() -> str | None:
    """A torchvision built for another torch breaks the imports of diffusers and of every vision model."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        return f"torchvision is installed but does not import ({error}); run: pip uninstall torchvision"
    return None
