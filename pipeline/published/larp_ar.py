"""LARP's generators of the ids of its tokenizer (hywang66/LARP, arXiv:2410.21264)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, need, with_null_row
from pipeline.published.llamagen_gpt import trunk_arguments, trunk_weights

WHAT = "LARP's generators, class-conditional (hywang66/LARP-L-long-AR: model.safetensors)"
NAMES = {r"abs_pe": "positions", r"cls_embedding\.embedding_table\.weight": "class_embedding.weight"}


def convert(state: Mapping[str, Tensor], heads: int | None = None, condition_drop: float = 0.1) -> dict[str, object]:
    """{"network", "objective"} of a state of LARP's generator: LlamaGen's blocks with vectors as positions.

    The vectors, fixed in the release, are learned here if it is trained further. `heads` follows from published widths;
    a `condition_drop` of 0 says that no row is for the dropped label. Raises ValueError for other keys or shapes.
    """
    table = need(state, "cls_embedding.embedding_table.weight", "LARP generator")
    positions = need(state, "abs_pe", "LARP generator").flatten(0, -2)  # of the class and all tokens but the last
    arguments = trunk_arguments(state, heads, [len(positions)])
    arguments |= {"position": "learned", "prefix_rotary": "none", "condition_drop": condition_drop}
    network = build_component("networks", arguments, num_classes=len(table) - (condition_drop > 0))
    weights = trunk_weights(state, NAMES)
    weights["positions"] = torch.cat([positions, torch.zeros_like(positions[:1])])
    weights["class_embedding.weight"] = with_null_row(table, condition_drop)
    return {"network": fill(network, weights), "objective": build_component("objectives", {"kind": "next_token"})}
