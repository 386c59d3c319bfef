"""RAR's generators (bytedance/1d-tokenizer, arXiv:2411.00776)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, need, ratio_of, rename

WHAT = "RAR generators, class-conditional (bytedance/1d-tokenizer: rar_b.bin, rar_l.bin, rar_xl.bin, rar_xxl.bin)"
NAMES = {
    r"blocks\.(\d+)\.norm([12])\.(weight|bias)": r"blocks.\1.norm\2.\3",
    r"blocks\.(\d+)\.attn\.(qkv|proj)\.(weight|bias)": r"blocks.\1.attention.\2.\3",
    r"blocks\.(\d+)\.attn\.q_norm\.(weight|bias)": r"blocks.\1.attention.query_norm.\2",
    r"blocks\.(\d+)\.attn\.k_norm\.(weight|bias)": r"blocks.\1.attention.key_norm.\2",
    r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)": r"blocks.\1.feed_forward.up.\2",
    r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)": r"blocks.\1.feed_forward.down.\2",
    r"blocks\.(\d+)\.adaLN_modulation\.1\.(weight|bias)": r"blocks.\1.modulation.\2",
    r"adaln_before_head\.adaLN_modulation\.1\.(weight|bias)": r"last_norm.modulation.\1",
    r"lm_head\.(weight|bias)": r"head.outputs.0.\1",
    r"cls_token": r"start",
    r"embeddings\.weight": r"embeddings",  # the tables below are taken apart by `rows_of`
    r"pos_embed": r"positions",
    r"target_aware_pos_embed": r"targets",
    r"timesteps_embeddings": r"steps",
}
MASKS = (r"attn_mask",)
PREFIX = 2  # the start token and the class
SPARE_POSITIONS, SPARE_STEPS = 1024, 100  # rows of the tables beyond the tokens; those past the prefix are never read
DROPOUT = {"condition_drop": 0.1, "residual_dropout": 0.1, "feed_forward_dropout": 0.1, "attention_dropout": 0.1}
ANNEALING = {"anneal_start": 125_000, "anneal_end": 187_500}


def condition_ids(labels: Tensor, vocab: int) -> Tensor:
    """RAR's rows of classes: after the ids of the codebook and one mask; the last one is the null class."""
    return vocab + 1 + labels


def convert(state: Mapping[str, Tensor]) -> dict[str, object]:
    """{"network", "objective"} of a RAR state.

    Left behind: the embedding of the mask id, which no training used, and the spare rows of the position tables.
    Raises ValueError for keys or shapes that are not RAR's.
    """
    what = "RAR"
    vocab, width = need(state, "lm_head.weight", what).shape
    tokens = need(state, "pos_embed", what).shape[1] - SPARE_POSITIONS
    if need(state, "timesteps_embeddings", what).shape[1] != tokens + SPARE_STEPS:
        raise ValueError("this RAR checkpoint's tables of positions and of steps disagree on the number of tokens")
    arguments = {
        "position": "learned",
        "start_token": True,
        "target_positions": True,
        "modulated": True,
        "norm": "layer",
        "norm_epsilon": 1e-6,
        "query_key_norm": True,
        "feed_forward": "gelu",
        "feed_forward_ratio": ratio_of(len(need(state, "blocks.0.mlp.fc1.weight", what)), width),
        "bias": True,
        "depth": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        "width": width,
        "heads": width // len(need(state, "blocks.0.attn.q_norm.weight", what)),
    }
    classes = len(need(state, "embeddings.weight", what)) - vocab - 2
    derived = {"grid": grid_for(tokens), "vocab": vocab, "num_classes": classes}
    network = build_component("networks", {"kind": "causal_transformer", **arguments, **DROPOUT}, **derived)
    weights = rows_of(rename(state, NAMES, MASKS), vocab, tokens)
    objective = build_component("objectives", {"kind": "random_order", **ANNEALING})
    return {"network": fill(network, weights), "objective": objective}


def grid_for(tokens: int) -> list[int]:
    """A square where the number of tokens is one, else a row: positions are learned in raster order."""
    side = math.isqrt(tokens)
    return [side, side] if side * side == tokens else [tokens]


def rows_of(weights: dict[str, Tensor], vocab: int, tokens: int) -> dict[str, Tensor]:
    """RAR's tables as ours; its last modulation is [scale, shift], ours [shift, scale]."""
    table = weights.pop("embeddings")
    weights["token_embedding.tables.0.weight"] = table[:vocab]
    weights["class_embedding.weight"] = table[condition_ids(torch.tensor(0), vocab) :]
    weights["start"] = weights["start"].flatten()
    weights["positions"] = weights["positions"][0, : PREFIX + tokens]
    weights["targets"] = weights["targets"][0, PREFIX : PREFIX + tokens]
    weights["steps"] = weights["steps"][0, : PREFIX + tokens]
    for kind in ("weight", "bias"):
        scale, shift = weights[f"last_norm.modulation.{kind}"].chunk(2)
        weights[f"last_norm.modulation.{kind}"] = torch.cat([shift, scale])
    return weights
