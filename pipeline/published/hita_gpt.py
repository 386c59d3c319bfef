"""Hita's class-conditional generators (CVMI-Lab/Hita, arXiv:2507.02358)."""

import math
from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, heads_of, need, with_null_row
from pipeline.published.llamagen_gpt import DROPOUT, HEADS, feed_forward, trunk_weights
from pipeline.ranges import Count, FractionBelowOne

WHAT = "Hita's generators, class-conditional (yexiguafu/hita-gen: vanilla/GPT-*/*.pt, ultra/GPT-*/*.pt)"
WHOSE = "Hita generator"
SIZES = HEADS | {1920: 32}  # heads by width, of every published size
TOKENS = 441  # patches of an image of 336 px
NAMES = {
    r"cls_embedding\.embedding_table\.weight": "class_embedding.weight",
    r"slot_embeddings\.weight": "embeddings.0.tables.0.weight",
    r"slot_pos\.weight": "positions",
}
MOVED = {"token_embedding.tables.0.weight": "embeddings.1.tables.0.weight"}  # what is LlamaGen's


def convert(
    state: Mapping[str, Tensor],
    heads: Count | None = None,
    tokens: Count = TOKENS,
    condition_drop: FractionBelowOne = 0.1,
) -> dict[str, object]:
    """{"network", "objective"} of a Hita generator's state, for codes with so many `tokens` of patches.

    It samples as the public implementation does, whose results are the published ones: the last holistic token is
    embedded by the patches' table. `heads` is needed where the width is not a published one; with a class dropout of 0
    the table of classes has no row of the dropped label. ValueError for keys or shapes that are not Hita's.
    """
    vocab, width = need(state, "slot_embeddings.weight", WHOSE).shape
    side, before = math.isqrt(tokens), len(need(state, "slot_pos.weight", WHOSE))
    if side**2 != tokens:
        raise ValueError(f"{tokens} tokens are no square of patches; Hita's codes have {TOKENS}")
    table = need(state, "cls_embedding.embedding_table.weight", WHOSE)
    arguments = {
        "kind": "segment_transformer",
        "grid": [before + tokens],
        "segments": [[before], [side, side]],
        "vocab": vocab,
        "depth": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers.")),
        "width": width,
        "heads": heads or heads_of(width, SIZES),
        "prefix_rotary": "zero",
        "border": "next",
        "condition_drop": condition_drop,
        **feed_forward(len(need(state, "layers.0.feed_forward.w1.weight", WHOSE)), width),
        **DROPOUT,
    }
    network = build_component("networks", arguments, num_classes=len(table) - (condition_drop > 0))
    weights = {MOVED.get(name, name): value for name, value in trunk_weights(state, NAMES).items()}
    weights["class_embedding.weight"] = with_null_row(table, condition_drop)
    first, second = weights.pop("head.outputs.0.weight").chunk(2)
    weights |= {"outputs.0.outputs.0.weight": first, "outputs.1.outputs.0.weight": second}
    objective = build_component("objectives", {"kind": "next_token_by_segment"})
    return {"network": fill(network, weights), "objective": objective}
