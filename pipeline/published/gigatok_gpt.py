"""GigaTok's class-conditional generators (SilentView/GigaTok, arXiv:2504.08736), and those of ReToK."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, need, with_null_row
from pipeline.published.llamagen_gpt import trunk_arguments, trunk_weights

WHAT = "GigaTok's generators (SilentView/GigaTok: GPT_B256_e300_VQ_SB.pt) and ReToK's (zfu006/ReTok)"
NAMES = {
    r"cls_embedding\.embedding_table\.weight": "class_embedding.weight",
    r"positional_embedding": "positions",
}


def convert(state: Mapping[str, Tensor], heads: int | None = None, condition_drop: float = 0.1) -> dict[str, object]:
    """{"network", "objective"} of a GigaTok generator: LlamaGen's with a learned position per place, the class's first.

    `heads` follows from the width for published sizes; a `condition_drop` of 0 says that no row is for the dropped
    label. Raises ValueError for keys or shapes that are not GigaTok's, such as those of its rotary variant.
    """
    table = need(state, "cls_embedding.embedding_table.weight", "GigaTok generator")
    positions = need(state, "positional_embedding", "GigaTok generator")
    arguments = trunk_arguments(state, heads, [len(positions) - 1]) | {
        "position": "learned",
        "prefix_rotary": "none",
        "condition_drop": condition_drop,
    }
    network = build_component("networks", arguments, num_classes=len(table) - (condition_drop > 0))
    weights = trunk_weights(state, NAMES)
    weights["class_embedding.weight"] = with_null_row(table, condition_drop)
    return {"network": fill(network, weights), "objective": build_component("objectives", {"kind": "next_token"})}
