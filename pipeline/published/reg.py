"""REG checkpoints: a SiT that denoises a vision model's class token with the latents (arXiv:2507.01467)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import need
from pipeline.published.repa import TRAINING
from pipeline.published.transformer_trunk import build, shapes

WHAT = "REG, a SiT with a class token among its tokens (Martinser/REG)"


def convert(state: Mapping[str, Tensor], heads: int | None = None, condition_drop: float = 0.1) -> dict[str, object]:
    """{"network", "objective"} of a REG state; its projectors served training alone and stay behind.

    The class token leads in by `cls_projectors2` and the layer norm `wg_norm`, out by `final_layer.linear_cls`. Time is
    1 at noise and the velocity points there, as REPA's and ours. `heads` follows from the width for published sizes.
    Raises ValueError for keys or shapes that are not REG's: forks have a norm without bias, or a place for the token.
    """
    kept = {key: value for key, value in state.items() if not re.fullmatch(TRAINING, key)}
    token = need(kept, "final_layer.linear_cls.weight", "REG").shape[0]
    need(kept, "wg_norm.bias", "REG")
    positions = need(kept, "pos_embed", "REG")
    if torch.count_nonzero(positions[:, 0]):
        raise ValueError("the first row of pos_embed, the class token's, is not zero; that is not the published REG")
    kept["pos_embed"] = positions[:, 1:]
    arguments = {
        **shapes(kept, "REG", heads, condition_drop),
        "outputs": 1,
        "time_scale": 1.0,
        "time_direction": "noise",
    }
    settings = {"path": "linear", "prediction": "velocity", "class_token": token}
    objective = build_component("objectives", {"kind": "flow_matching", **settings})
    return {"network": build(kept, arguments | {"class_token": token}), "objective": objective}
