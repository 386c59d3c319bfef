"""What the protocols of a report, a card and a file of statistics have in common."""

import importlib.metadata
from typing import Any

LIBRARIES = ("torch", "numpy", "scikit-learn", "diffusers")


def computation(precision: str = "fp32") -> dict[str, Any]:
    """How numbers are computed: precision, and versions of the libraries."""
    networks = "float32" if precision == "fp32" else precision
    return {"precision": f"networks {networks}, statistics float64", "versions": versions()}


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
