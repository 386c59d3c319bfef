"""DiGIT's first generators, of clusters of frozen features (DAMO-NLP-SG/DiGIT, arXiv:2410.12490)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, heads_of, need, ratio_of, rename

WHAT = "DiGIT's first generator, unconditional (DAMO-NLP-SG/DiGIT: the checkpoint of stage 1)"
WHOSE = "DiGIT generator"
HEADS = {1024: 16, 1536: 16}  # by the published widths
SPECIAL = 4  # fairseq's first ids: begin, padding, end, unknown
END = 2  # what the first id is predicted from, and what follows the last
FIRST = 2  # rows of a table of positions before the first that is used
TOKENS = 256  # of an image of 224 px
BLOCK = {
    r"decoder\.layers\.(\d+)\.self_attn_layer_norm\.(weight|bias)": r"blocks.\1.norm1.\2",
    r"decoder\.layers\.(\d+)\.final_layer_norm\.(weight|bias)": r"blocks.\1.norm2.\2",
    r"decoder\.layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)": r"blocks.\1.attention.proj.\2",
    r"decoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)": r"blocks.\1.\2.\3",
    r"decoder\.layers\.(\d+)\.fc1\.(weight|bias)": r"blocks.\1.feed_forward.up.\2",
    r"decoder\.layers\.(\d+)\.fc2\.(weight|bias)": r"blocks.\1.feed_forward.down.\2",
}
TABLES = (r"decoder\.embed_(tokens|positions|positions_1)\.weight", r"decoder\.output_projection\.weight")
DROPPED = (*TABLES, r"decoder\.version", r"centroids", r"centroid_norm", r"pretrained_encoder\..*", r"vqgan\..*")


def convert(state: Mapping[str, Tensor], heads: int | None = None, tokens: int = TOKENS) -> dict[str, object]:
    """{"network", "objective"} of the state of a first generator of codes of `tokens` ids.

    `heads` follows from the width for published sizes. The end, which these models also predict after the last id, is
    one of their four special ids, whose logits stay and which are never chosen. The frozen encoder and the centroids
    are the tokenizer's, see `digit_pixels`. Raises ValueError for keys or shapes that are not DiGIT's.
    """
    table = need(state, "decoder.embed_tokens.weight", WHOSE)
    vocab, width = len(table) - SPECIAL, table.shape[1]
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise ValueError(f"{tokens} tokens are not a square of them; DiGIT's codes have 256")
    network = build_component(
        "networks",
        {
            "kind": "causal_transformer",
            **{"position": "learned", "norm": "layer", "feed_forward": "gelu", "bias": True, "condition_drop": 0.0},
            **{"depth": depth_of(state), "width": width, "heads": heads or heads_of(width, HEADS)},
            **{"feed_forward_ratio": ratio_of(hidden_of(state), width), "post_norm": is_post_norm(state)},
            **{"special_ids": SPECIAL, "residual_dropout": 0.1, "attention_dropout": 0.1, "zero_head": False},
        },
        grid=[side, side],
        vocab=vocab,
        num_classes=0,
    )
    vectors = table * math.sqrt(width)
    weights = blocks_of(state, "last_norm") | {
        "class_embedding.weight": vectors[END : END + 1],
        "token_embedding.tables.0.weight": vectors[SPECIAL:],
        "positions": positions_of(state, "embed_positions", tokens + 1),
        "head.outputs.0.weight": special_last(need(state, "decoder.output_projection.weight", WHOSE)),
    }
    objective = build_component("objectives", {"kind": "next_token", "smoothing": 0.1})
    return {"network": fill(network, weights), "objective": objective}


def depth_of(state: Mapping[str, Tensor]) -> int:
    need(state, "decoder.layers.0.fc1.weight", WHOSE)
    return 1 + max(int(key.split(".")[2]) for key in state if key.startswith("decoder.layers."))


def hidden_of(state: Mapping[str, Tensor]) -> int:
    return len(need(state, "decoder.layers.0.fc1.weight", WHOSE))


def is_post_norm(state: Mapping[str, Tensor]) -> bool:
    """Whether there is no norm at the end, as fairseq has one with norms before the branches alone."""
    return "decoder.layer_norm.weight" not in state


def blocks_of(state: Mapping[str, Tensor], last_norm: str) -> dict[str, Tensor]:
    """The blocks' weights under the names here, with queries, keys and values in one; and the norm at the end."""
    names = BLOCK | {r"decoder\.layer_norm\.(weight|bias)": rf"{last_norm}.\1"}
    weights = rename(state, names, DROPPED)
    for i in range(depth_of(state)):
        for kind in ("weight", "bias"):
            parts = [need(weights, f"blocks.{i}.{part}.{kind}", WHOSE) for part in "qkv"]
            weights[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
            for part in "qkv":
                del weights[f"blocks.{i}.{part}.{kind}"]
    return weights


def positions_of(state: Mapping[str, Tensor], name: str, count: int) -> Tensor:
    """The first `count` positions that are used of a table; ValueError where it has fewer."""
    table = need(state, f"decoder.{name}.weight", WHOSE)[FIRST:]
    if len(table) < count:
        raise ValueError(f"these weights have positions for {len(table)} places, and {count} are needed; set tokens")
    return table[:count]


def special_last(head: Tensor) -> Tensor:
    """The rows of a head with those of special ids after the others."""
    return torch.cat([head[SPECIAL:], head[:SPECIAL]])
