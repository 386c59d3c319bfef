"""FAR, the class-conditional generators of FQGAN's codes (showlab/FQGAN, arXiv:2411.16681)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, need, with_null_row
from pipeline.published.llamagen_gpt import TOKENS, square, trunk_arguments, trunk_weights

WHAT = "FAR generators of two or three codebooks (ZechenBai/FQGAN: FAR-B and FAR-L)"
WHOSE = "FAR generator"
HEAD = "ar_head."


def convert(
    state: Mapping[str, Tensor], heads: int | None = None, tokens: int = TOKENS, condition_drop: float = 0.1
) -> dict[str, object]:
    """{"network", "objective"} of a FAR state; options as of llamagen_gpt, whose trunk it has.

    Raises ValueError for keys or shapes that are not FAR's.
    """
    codebooks = sum(f"tok_embeddings_{k}.weight" in state for k in range(1, len(state)))
    rows = need(state, "tok_embeddings_1.weight", WHOSE)
    table = need(state, "cls_embedding.embedding_table.weight", WHOSE)
    need(state, f"{HEAD}0.attention_norm.weight", WHOSE)
    arguments = trunk_arguments(dict(state) | {"tok_embeddings.weight": rows}, heads, square(tokens))
    arguments |= {"codebooks": codebooks, "condition_drop": condition_drop}
    weights = trunk_weights({key: value for key, value in state.items() if not key.startswith(HEAD)}, names(codebooks))
    weights["class_embedding.weight"] = with_null_row(table, condition_drop)
    blocks = {key.replace(HEAD, "layers.", 1): value for key, value in state.items() if key.startswith(HEAD)}
    weights |= {f"head.{name}": value for name, value in trunk_weights(blocks, {}).items()}
    arguments["head_depth"] = 1 + max(int(key.split(".")[1]) for key in blocks)
    network = build_component("networks", arguments, num_classes=len(table) - (condition_drop > 0))
    return {"network": fill(network, weights), "objective": build_component("objectives", {"kind": "next_token"})}


def names(codebooks: int) -> dict[str, str]:
    """Regular expressions of FAR's keys outside of the blocks, and what they become."""
    renames = {
        r"cls_embedding\.embedding_table\.weight": "class_embedding.weight",
        r"aggregation_layer\.(weight|bias)": r"token_embedding.joined.\1",
        r"norm\.weight": "head.norm.weight",
    }
    for k in range(codebooks):
        renames[rf"tok_embeddings_{k + 1}\.weight"] = f"token_embedding.tables.{k}.weight"
        renames[rf"output_{k + 1}\.weight"] = f"head.outputs.{k}.weight"
    return renames
