"""DiT checkpoints (facebookresearch/DiT, arXiv:2212.09748)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.transformer_trunk import build, shapes

WHAT = "DiT, class-conditional with learned variance (facebookresearch/DiT: DiT-XL-2-256x256.pt)"


def convert(state: Mapping[str, Tensor], heads: int | None = None, condition_drop: float = 0.1) -> dict[str, object]:
    """{"network", "objective"} of a DiT state; two outputs a channel mean a learned variance.

    `heads` follows from the width for published sizes. Raises ValueError for keys or shapes that are not DiT's.
    """
    arguments = shapes(state, "DiT", heads, condition_drop)
    rows = state["final_layer.linear.bias"].shape[0]
    outputs = rows // (arguments["patch_size"] ** 2 * arguments["dim"])
    network = build(state, {**arguments, "outputs": outputs, "time_scale": 1000.0, "time_direction": "noise"})
    variance = "learned_range" if outputs == 2 else "fixed_large"
    return {
        "network": network,
        "objective": build_component("objectives", {"kind": "gaussian_diffusion", "variance": variance}),
    }
