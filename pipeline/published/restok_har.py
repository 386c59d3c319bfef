"""ResTok's class-conditional generators, HAR (Kwai-Kolors/ResTok, arXiv:2601.03955)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, need, with_null_row
from pipeline.published.llamagen_gpt import trunk_arguments, trunk_weights
from pipeline.ranges import Count, Fraction

WHAT = "ResTok's generators, HAR (Kwai-Kolors/ResTok: xushu-me/llamagen_l_c2i_restok_l_128.r256_in1k)"
NAMES = {
    r"cls_embedding\.embedding_table\.weight": "class_embedding.weight",
    r"spe_tok_embeddings\.special_embeddings\.weight": "specials",
}
CAUSAL = ("position", "prefix_rotary")  # arguments of a causal_transformer that this network has not


def convert(
    state: Mapping[str, Tensor], heads: int | None = None, single: Count = 4, condition_drop: Fraction = 0.1
) -> dict[str, object]:
    """{"network", "objective"} of a HAR state: `single` tokens one by one, then levels of single, 2 single, ...

    `heads` follows from the width for published sizes; a `condition_drop` of 0 says that no row is for the dropped
    label. Special tokens that no level reads stay behind. Raises ValueError for keys or shapes that are not HAR's.
    """
    what = "HAR generator"
    table = need(state, "cls_embedding.embedding_table.weight", what)
    specials = need(state, "spe_tok_embeddings.special_embeddings.weight", what)
    levels = doubling_levels(len(specials) + 1, single)
    trunk = {name: value for name, value in trunk_arguments(state, heads, [sum(levels)]).items() if name not in CAUSAL}
    arguments = trunk | {"kind": "parallel_level_transformer", "condition_drop": condition_drop}
    network = build_component("networks", arguments, levels=levels, num_classes=len(table) - (condition_drop > 0))
    weights = trunk_weights(state, NAMES)
    weights["class_embedding.weight"] = with_null_row(table, condition_drop)
    weights["specials"] = specials[: levels[-1] - 1].contiguous()
    return {"network": fill(network, weights), "objective": build_component("objectives", {"kind": "next_scale"})}


def doubling_levels(tokens: int, single: int) -> list[int]:
    """Levels of so many tokens: `single` of one, then of single, 2 single, ...; ValueError where they do not fit."""
    levels = [1] * single
    while sum(levels) < tokens:
        levels.append(sum(levels))
    if sum(levels) != tokens:
        raise ValueError(f"{tokens} tokens are not {single} that are doubled; give single=, the tokens made one by one")
    return levels
