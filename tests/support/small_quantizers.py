"""Small quantisers of every kind, features for them and draws, for the tests."""

import torch
from torch import Tensor

from pipeline import components
from pipeline.bottlenecks.base import CodebookQuantizer, Quantizer
from pipeline.draws import StepDraws

UNIT = {"kind": "vector_quantize", "dim": 4, "vocab": 24}
EUCLID = UNIT | {"unit_norm": False}
CLUSTERED = {"kind": "online_clustered", "dim": 4, "vocab": 24, "decay": 0.9}
GRID = {"kind": "finite_scalar", "levels": [8, 5, 4, 2, 3]}
BITS = {"kind": "binary", "bits": 6}
NODES = {
    "unit": UNIT,
    "euclid": EUCLID,
    "ema": EUCLID | {"learn": "ema", "start": "kmeans", "restart": 0.1},
    "all": UNIT | {"start": "kmeans", "restart": 0.1, "gradient": "rotation", "entropy_temperature": 0.1},
    "drawn": UNIT | {"learn": "ema", "sampling_temperature": 0.1},
    "clustered": CLUSTERED,
    "clustered_unit": CLUSTERED | {"unit_norm": True},
    "grid": GRID,
    "bits": BITS,
    "sphere": BITS | {"spherical": True, "group": 4},
    "residual": {"kind": "residual", "bottleneck": EUCLID, "codebooks": 3},
    "shared": {"kind": "residual", "bottleneck": EUCLID | {"learn": "ema"}, "codebooks": 3, "shared": True},
    "residual_grid": {"kind": "residual", "bottleneck": GRID, "codebooks": 2, "scale": 0.25},
    "residual_bits": {"kind": "residual", "bottleneck": BITS, "codebooks": 3, "scale": 0.5},
    "product": {"kind": "product", "bottleneck": UNIT | {"gradient": "rotation"}, "codebooks": 2},
    "nested": {
        "kind": "product",
        "codebooks": 2,
        "bottleneck": {"kind": "residual", "bottleneck": BITS, "codebooks": 2},
    },
}


def build(node: dict, **changes) -> Quantizer:
    torch.manual_seed(0)
    quantizer = components.build("bottlenecks", node | changes)
    for part in quantizer.modules():
        if isinstance(part, CodebookQuantizer) and not part.unit_norm:
            part.codebook.data.normal_()
    return quantizer


def features(quantizer: Quantizer, count: int = 6, tokens: int = 20, seed: int = 1) -> Tensor:
    h = torch.randn(count, tokens, quantizer.inputs, generator=torch.Generator().manual_seed(seed))
    return h.requires_grad_()


def draws(step: int = 0, batch: int = 6, places: slice = slice(0, 6)) -> StepDraws:
    return StepDraws(0, step, places, batch)
