"""The arithmetic that a recipe's `precision` names."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which matrix products are computed narrow, unless `precision` is fp32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
