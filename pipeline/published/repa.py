"""REPA checkpoints: a SiT and the projectors that aligned it (sihyun-yu/REPA, arXiv:2410.06940)."""

import re
from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.transformer_trunk import build, shapes

WHAT = "REPA, a SiT aligned with a vision model (sihyun-yu/REPA: last.pt; REPA-E's SiT on a frozen autoencoder)"
TRAINING = r"projectors\..*|bn\..*"  # heads to the vision model's width; REPA-E's running statistics of the latents


def convert(state: Mapping[str, Tensor], heads: int | None = None, condition_drop: float = 0.1) -> dict[str, object]:
    """{"network", "objective"} of a REPA state; its projectors served training alone and stay behind.

    REPA's time is 1 at noise and its velocity points there, as ours. `heads` follows from the width for the
    published sizes. Raises ValueError for keys or shapes that are not REPA's.
    """
    kept = {key: value for key, value in state.items() if not re.fullmatch(TRAINING, key)}
    arguments = {
        **shapes(kept, "REPA", heads, condition_drop),
        "outputs": 1,
        "time_scale": 1.0,
        "time_direction": "noise",
    }
    objective = build_component("objectives", {"kind": "flow_matching", "path": "linear", "prediction": "velocity"})
    return {"network": build(kept, arguments), "objective": objective}
