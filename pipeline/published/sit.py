"""SiT checkpoints (willisma/SiT, arXiv:2401.08740)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.transformer_trunk import build, negate, shapes

WHAT = "SiT, class-conditional, linear path and velocity (willisma/SiT: SiT-XL-2-256x256.pt)"


def convert(state: Mapping[str, Tensor], heads: int | None = None, condition_drop: float = 0.1) -> dict[str, object]:
    """{"network", "objective"} of a SiT state trained on the linear path to predict velocity.

    SiT's time is 1 at data and its velocity points there, so the network embeds 1 - u and its last layer is negated.
    The second half of a head of 2C channels is never used by SiT and is left out. `heads` is told by the width for the
    published sizes. Raises ValueError for keys or shapes that are not SiT's.
    """
    arguments = {
        **shapes(state, "SiT", heads, condition_drop),
        "outputs": 1,
        "time_scale": 1.0,
        "time_direction": "data",
    }
    objective = build_component("objectives", {"kind": "flow_matching", "path": "linear", "prediction": "velocity"})
    return {"network": negate(build(state, arguments)), "objective": objective}
