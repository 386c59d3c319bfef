"""LlamaGen's class-conditional generators (FoundationVision/LlamaGen, arXiv:2406.06525)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, heads_of, need, ratio_of, rename, with_null_row

WHAT = "LlamaGen generators, class-conditional (FoundationVision/LlamaGen: c2i_B_256.pt; of 384 px with tokens=576)"
NAMES = {
    r"tok_embeddings\.weight": r"token_embedding.tables.0.weight",
    r"layers\.(\d+)\.attention_norm\.weight": r"blocks.\1.norm1.weight",
    r"layers\.(\d+)\.attention\.wqkv\.weight": r"blocks.\1.attention.qkv.weight",
    r"layers\.(\d+)\.attention\.wo\.weight": r"blocks.\1.attention.proj.weight",
    r"layers\.(\d+)\.ffn_norm\.weight": r"blocks.\1.norm2.weight",
    r"layers\.(\d+)\.feed_forward\.w2\.weight": r"blocks.\1.feed_forward.down.weight",
    r"norm\.weight": r"last_norm.weight",
    r"output\.weight": r"head.outputs.0.weight",
}
TABLES = (r"freqs_cis", r"causal_mask")  # computed from the sizes here
HALVES = r"layers\.\d+\.feed_forward\.w[13]\.weight"  # of one matrix here: what is gated, and by what
HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 3200: 32}  # by width, of every published size
DROPOUT = {"token_dropout": 0.1, "residual_dropout": 0.1}
TOKENS = 256  # of an image of 256 px
PUBLISHED_MULTIPLE = 256
WHOSE = "LlamaGen generator"


def convert(
    state: Mapping[str, Tensor], heads: int | None = None, tokens: int = TOKENS, condition_drop: float = 0.1
) -> dict[str, object]:
    """{"network", "objective"} of a LlamaGen state. No weight tells the number of tokens: a model of 384 px has 576.

    `heads` follows from the width for published sizes; a `condition_drop` of 0 says that no row is for the dropped
    label. Rotary tables and masks stay behind. Raises ValueError for keys or shapes that are not LlamaGen's.
    """
    table = need(state, "cls_embedding.embedding_table.weight", WHOSE)
    arguments = trunk_arguments(state, heads, square(tokens)) | {"condition_drop": condition_drop}
    network = build_component("networks", arguments, num_classes=len(table) - (condition_drop > 0))
    weights = trunk_weights(state, {r"cls_embedding\.embedding_table\.weight": r"class_embedding.weight"})
    weights["class_embedding.weight"] = with_null_row(table, condition_drop)
    return {"network": fill(network, weights), "objective": build_component("objectives", {"kind": "next_token"})}


def trunk_arguments(state: Mapping[str, Tensor], heads: int | None, grid: list[int]) -> dict[str, object]:
    """The node of a causal_transformer that the tensors imply, what it is asked for left out."""
    vocab, width = need(state, "tok_embeddings.weight", WHOSE).shape
    if len(need(state, "layers.0.attention.wqkv.weight", WHOSE)) != 3 * width:
        raise ValueError("this LlamaGen generator shares keys and values between heads; none that was published does")
    return {
        "kind": "causal_transformer",
        "position": "rotary",
        "prefix_rotary": "zero",
        "depth": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers.")),
        "width": width,
        "heads": heads or heads_of(width, HEADS),
        "grid": grid,
        "vocab": vocab,
        **feed_forward(len(need(state, "layers.0.feed_forward.w1.weight", WHOSE)), width),
        **DROPOUT,
    }


def square(tokens: int) -> list[int]:
    """The sides of a square map of so many tokens; ValueError where it is none."""
    if math.isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"{tokens} tokens are not a square of them; LlamaGen's codes have 256, 576 or 1024")
    return [math.isqrt(tokens)] * 2


def trunk_weights(state: Mapping[str, Tensor], others: Mapping[str, str]) -> dict[str, Tensor]:
    """The state under the names here; `others` are patterns of what the network is asked for, and their names."""
    weights = rename(state, NAMES | others, (*TABLES, HALVES))
    for i in range(1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))):
        gate, value = (need(state, f"layers.{i}.feed_forward.w{j}.weight", WHOSE) for j in (1, 3))
        weights[f"blocks.{i}.feed_forward.up.weight"] = torch.cat([gate, value])
    return weights


def feed_forward(hidden: int, width: int) -> dict[str, object]:
    """The arguments that give this hidden width; the published ones round 8 / 3 of the width up to a multiple."""
    multiple = PUBLISHED_MULTIPLE
    if multiple * math.ceil(int(8 * width / 3) / multiple) == hidden:
        return {"feed_forward_multiple": multiple}
    return {"feed_forward_ratio": ratio_of(math.ceil(1.5 * hidden), width), "feed_forward_multiple": 1}
