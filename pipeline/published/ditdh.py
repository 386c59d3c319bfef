"""DiT^DH checkpoints, the wide-head transformers of RAE (bytetriper/RAE, arXiv:2510.11690) and RecTok."""

import math
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.networks.wide_head_transformer import WideHeadTransformer
from pipeline.published.checkpoint import fill, need, rename, with_null_row
from pipeline.published.transformer_trunk import BLOCK_NAMES, feed_forward_ratio, grid_of, negate, query_key_norm

WHAT = "DiT^DH, class-conditional with a wide head (nyu-visionx/RAE-collections: DiTs/.../stage2_model.pt; RecTok)"
NAMES = {
    r"s_embedder\.proj\.(weight|bias)": r"patch_embedding.\1",
    r"x_embedder\.proj\.(weight|bias)": r"head_embedding.\1",
    r"s_projector\.(weight|bias)": r"head_request.\1",
    r"t_embedder\.W": r"time_embedding.frequencies",
    r"t_embedder\.mlp\.0\.(weight|bias)": r"time_embedding.up.\1",
    r"t_embedder\.mlp\.2\.(weight|bias)": r"time_embedding.down.\1",
    r"y_embedder\.embedding_table\.weight": r"label_embedding.weight",
    r"final_layer\.adaLN_modulation\.1\.(weight|bias)": r"head.modulation.\1",
    r"final_layer\.norm_final\.weight": r"head.norm.weight",
    r"final_layer\.linear\.(weight|bias)": r"head.linear.\1",
    **BLOCK_NAMES,
}
TABLES = (r"pos_embed", r"(enc|dec)_feat_rope\.freqs_(cos|sin)")  # computed from the sizes here


def convert(
    state: Mapping[str, Tensor],
    head_depth: int = 2,
    time: Literal["noise", "data"] = "noise",
    condition_drop: float = 0.1,
) -> dict[str, object]:
    """{"network", "objective"} of a DiT^DH state of patches of one token, `head_depth` of its blocks the head's.

    RAE's time is 1 at noise and its velocity points there, as ours. RecTok's is 1 at data (`time="data"`): then the
    network embeds 1 - u and its last layer is negated. Raises ValueError for keys or shapes that are not DiT^DH's.
    """
    arguments = shapes(state, head_depth, condition_drop) | {"time_direction": time}
    network = WideHeadTransformer(**arguments)
    weights = {numbered(key, network.config.depth): value for key, value in rename(state, NAMES, TABLES).items()}
    for name in ("patch_embedding", "head_embedding"):
        weights[f"{name}.weight"] = weights[f"{name}.weight"].flatten(1)  # a 1x1 convolution
    weights["label_embedding.weight"] = with_null_row(weights["label_embedding.weight"], condition_drop)
    fill(network, weights)
    objective = build_component("objectives", {"kind": "flow_matching", "path": "linear", "prediction": "velocity"})
    return {"network": negate(network) if time == "data" else network, "objective": objective}


def shapes(state: Mapping[str, Tensor], head_depth: int, condition_drop: float) -> dict[str, object]:
    """The constructor arguments of WideHeadTransformer that the tensors' shapes imply."""
    what = "DiT^DH"
    width, dim, *patch = need(state, "s_embedder.proj.weight", what).shape
    head_width, _, *head_patch = need(state, "x_embedder.proj.weight", what).shape
    if set(patch + head_patch) != {1}:
        raise ValueError(f"this DiT^DH reads patches of {patch[0]} and {head_patch[0]} tokens; only one token is known")
    swiglu = "blocks.0.mlp.w12.weight" in state
    need(state, "blocks.0.mlp.w12.weight" if swiglu else "blocks.0.mlp.fc1.weight", what)
    rotary = [need(state, f"{part}_feat_rope.freqs_cos", what).shape[-1] for part in ("enc", "dec")]
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")) - head_depth
    return {
        "grid": grid_of(state["pos_embed"][0]) if "pos_embed" in state else square_of(state, what),
        "position": "rotary_and_fixed" if "pos_embed" in state else "rotary",
        "dim": dim,
        "num_classes": len(need(state, "y_embedder.embedding_table.weight", what)) - (condition_drop > 0),
        "condition_drop": condition_drop,
        "depth": depth,
        "width": width,
        "heads": width // rotary[0],
        "head_depth": head_depth,
        "head_width": head_width,
        "head_heads": head_width // rotary[1],
        "norm": "rms" if "blocks.0.norm1.weight" in state else "layer",
        "feed_forward": "swiglu" if swiglu else "gelu",
        "feed_forward_ratio": feed_forward_ratio(state, width, swiglu),
        "query_key_norm": query_key_norm(state),
    }


def square_of(state: Mapping[str, Tensor], what: str) -> list[int]:
    """[rows, columns] of as many tokens as the rotary table has rows; ValueError where that is no square."""
    tokens = len(need(state, "enc_feat_rope.freqs_cos", what))
    if (side := math.isqrt(tokens)) ** 2 != tokens:
        raise ValueError(f"this DiT^DH has positions of {tokens} tokens, which make no square; only squares are known")
    return [side, side]


def numbered(key: str, depth: int) -> str:
    """blocks.N of the whole network as ours: of the trunk, or counted anew in the head."""
    if not key.startswith("blocks."):
        return key
    _, number, rest = key.split(".", 2)
    return key if int(number) < depth else f"head_blocks.{int(number) - depth}.{rest}"
