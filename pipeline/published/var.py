"""VAR's class-conditional generators (FoundationVision/VAR, arXiv:2404.02905)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, heads_of, need, ratio_of, rename
from pipeline.ranges import Count, Fraction, FractionBelowOne, Positive
from pipeline.saved_folders import load_tokenizer

WHAT = "VAR's generators (FoundationVision/var: var_d16.pth; import var_vqvae first, and give tokenizer=OUT of it)"
NAMES = {
    r"class_emb\.weight": r"class_embedding.weight",
    r"pos_start": r"start",
    r"pos_1LC": r"positions",
    r"lvl_embed\.weight": r"level_embedding.weight",
    r"word_embed\.(weight|bias)": r"word_embedding.\1",
    r"blocks\.(\d+)\.attn\.mat_qkv\.weight": r"blocks.\1.attention.qkv.weight",
    r"blocks\.(\d+)\.attn\.q_bias": r"blocks.\1.attention.query_bias",
    r"blocks\.(\d+)\.attn\.v_bias": r"blocks.\1.attention.value_bias",
    r"blocks\.(\d+)\.attn\.scale_mul_1H11": r"blocks.\1.attention.log_scales",
    r"blocks\.(\d+)\.attn\.proj\.(weight|bias)": r"blocks.\1.attention.proj.\2",
    r"blocks\.(\d+)\.ffn\.fc1\.(weight|bias)": r"blocks.\1.feed_forward.up.\2",
    r"blocks\.(\d+)\.ffn\.fc2\.(weight|bias)": r"blocks.\1.feed_forward.down.\2",
    r"blocks\.(\d+)\.ada_lin\.1\.(weight|bias)": r"blocks.\1.modulation.\2",
    r"blocks\.(\d+)\.ada_gss": r"blocks.\1.shifts",
    r"shared_ada_lin\.1\.(weight|bias)": r"modulation.\1",
    r"head_nm\.ada_lin\.1\.(weight|bias)": r"last_norm.modulation.\1",
    r"head\.(weight|bias)": r"head.outputs.0.\1",
}
TABLES = (r"attn_bias_for_masking", r"lvl_1L", r"blocks\.\d+\.attn\.zero_k_bias")  # computed from the sizes here
MODULATION = (4, 2, 0, 5, 3, 1)  # of gate1, gate2, scale1, scale2, shift1, shift2, where ours stand
HEADS = {64 * depth: depth for depth in (16, 20, 24, 30, 36)}  # by width, of every published size
FLAT = ("start", "positions")  # theirs have a batch axis of one


def convert(
    state: Mapping[str, Tensor],
    tokenizer: str,
    heads: Count | None = None,
    condition_drop: Fraction = 0.1,
    drop_path: FractionBelowOne = 0.0,
    norm_epsilon: Positive = 1e-6,
) -> dict[str, object]:
    """{"network", "objective"} of a VAR state, and of the folder of its tokenizer, whose code vectors it reads.

    `heads` follows from the width for published sizes. Raises ValueError for keys or shapes that are not VAR's.
    """
    what = "VAR generator"
    neck = load_tokenizer(tokenizer, "tokenizer").neck
    spec = neck.spec((math.isqrt(neck.tokens or 0),) * 2)
    width, dim = need(state, "word_embed.weight", what).shape
    normed = "blocks.0.attn.scale_mul_1H11" in state
    if heads is None and normed:
        heads = state["blocks.0.attn.scale_mul_1H11"].numel()
    arguments = {
        "depth": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        "width": width,
        "heads": heads or heads_of(width, HEADS),
        "feed_forward_ratio": ratio_of(len(need(state, "blocks.0.ffn.fc1.weight", what)), width),
        "norm_epsilon": norm_epsilon,
        "query_key_norm": normed,
        "shared_modulation": "shared_ada_lin.1.weight" in state,
        "condition_drop": condition_drop,
        "drop_path": drop_path,
    }
    derived = {
        "grid": list(spec.grid),
        "levels": list(spec.levels),
        "dim": dim,
        "vocab": spec.vocab,
        "num_classes": len(need(state, "class_emb.weight", what)) - 1,
    }
    network = build_component("networks", {"kind": "next_scale_transformer", **arguments}, **derived)
    weights = {key: converted_weight(key, value) for key, value in rename(state, NAMES, TABLES).items()}
    tables = network.tables_of(neck)
    network = fill(network, weights | {name: table.contiguous() for name, table in tables.items()})
    objective = build_component("objectives", {"kind": "next_scale"})
    return {"network": network, "objective": objective}


def converted_weight(key: str, value: Tensor) -> Tensor:
    """A weight of VAR under our name, in our shape and order."""
    if key.endswith("log_scales"):
        return value.flatten()
    if key in FLAT:
        return value[0]
    if key.endswith("shifts"):
        value = value.flatten()
    if key.startswith("last_norm.modulation"):
        scale, shift = value.chunk(2)
        return torch.cat([shift, scale])
    if "modulation." in key or key.endswith("shifts"):
        parts = value.chunk(6)
        return torch.cat([parts[place] for place in MODULATION])
    return value
