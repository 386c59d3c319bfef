"""LightningDiT checkpoints (hustvl/LightningDiT, arXiv:2501.01423)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.transformer_trunk import build, negate, shapes

WHAT = "LightningDiT, class-conditional on VA-VAE latents (hustvl/LightningDiT: lightningdit-xl-imagenet256-*.pt)"


def convert(state: Mapping[str, Tensor], heads: int | None = None, condition_drop: float = 0.1) -> dict[str, object]:
    """{"network", "objective"} of a LightningDiT state; its switches are read off the keys.

    Its time is 1 at data and its velocity points there, so the network embeds 1 - u and its last layer is negated.
    Raises ValueError for keys or shapes that are not LightningDiT's.
    """
    arguments = shapes(state, "LightningDiT", heads, condition_drop)
    arguments |= {"outputs": 1, "time_scale": 1.0, "time_direction": "data"}
    objective = build_component("objectives", {"kind": "flow_matching", "time": "logit_normal", "cosine": True})
    return {"network": negate(build(state, arguments)), "objective": objective}
