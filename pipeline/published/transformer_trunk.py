"""The keys that DiT, SiT and LightningDiT checkpoints share, and the network that their shapes imply."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pipeline.networks.base import Network
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.nn.embeddings import fixed_positions
from pipeline.published.checkpoint import fill, heads_of, need, ratio_of, rename, with_null_row

Denoiser = TypeVar("Denoiser", bound=Network)  # with a modulated head
BLOCK_NAMES = {
    r"blocks\.(\d+)\.(norm[12])\.weight": r"blocks.\1.\2.weight",
    r"blocks\.(\d+)\.attn\.(qkv|proj)\.(weight|bias)": r"blocks.\1.attention.\2.\3",
    r"blocks\.(\d+)\.attn\.q_norm\.(weight|bias)": r"blocks.\1.attention.query_norm.\2",
    r"blocks\.(\d+)\.attn\.k_norm\.(weight|bias)": r"blocks.\1.attention.key_norm.\2",
    r"blocks\.(\d+)\.mlp\.(?:fc1|w12)\.(weight|bias)": r"blocks.\1.feed_forward.up.\2",
    r"blocks\.(\d+)\.mlp\.(?:fc2|w3)\.(weight|bias)": r"blocks.\1.feed_forward.down.\2",
    r"blocks\.(\d+)\.adaLN_modulation\.1\.(weight|bias)": r"blocks.\1.modulation.\2",
}
NAMES = {
    r"x_embedder\.proj\.(weight|bias)": r"patch_embedding.\1",
    r"t_embedder\.mlp\.0\.(weight|bias)": r"time_embedding.up.\1",
    r"t_embedder\.mlp\.2\.(weight|bias)": r"time_embedding.down.\1",
    r"y_embedder\.embedding_table\.weight": r"label_embedding.weight",
    r"final_layer\.adaLN_modulation\.1\.(weight|bias)": r"head.modulation.\1",
    r"final_layer\.norm_final\.weight": r"head.norm.weight",
    r"final_layer\.linear\.(weight|bias)": r"head.linear.\1",
    r"cls_projectors2\.(weight|bias)": r"class_token_layers.embedding.\1",
    r"wg_norm\.(weight|bias)": r"class_token_layers.norm.\1",
    r"final_layer\.linear_cls\.(weight|bias)": r"class_token_layers.linear.\1",
    **BLOCK_NAMES,
}
TABLES = (r"pos_embed", r"feat_rope\.freqs_(cos|sin)")  # computed from the sizes here
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1536: 24, 1792: 28}  # by width, of every published size


def shapes(
    state: Mapping[str, Tensor], what: str, heads: int | None = None, condition_drop: float = 0.1
) -> dict[str, object]:
    """The constructor arguments of DiffusionTransformer that the tensors' shapes imply, time and outputs left out.

    `heads` is needed where neither a query norm, a rotary table nor the published sizes tell it; a `condition_drop` of
    0 says that the label table has no row for the dropped label. Raises ValueError where the heads cannot be told, and
    for a variant that DiffusionTransformer does not have.
    """
    width, dim, patch, _ = need(state, "x_embedder.proj.weight", what).shape
    places = grid_of(need(state, "pos_embed", what)[0])
    swiglu = "blocks.0.mlp.w12.weight" in state
    need(state, "blocks.0.mlp.w12.weight" if swiglu else "blocks.0.mlp.fc1.weight", what)
    modulations = len(need(state, "blocks.0.adaLN_modulation.1.weight", what)) / width
    if modulations not in (4, 6):
        raise ValueError(f"{what} blocks have 6 modulations, or 4 without shifts; here are {modulations:g}")
    return {
        "grid": [patch * size for size in places],
        "dim": dim,
        "num_classes": len(need(state, "y_embedder.embedding_table.weight", what)) - (condition_drop > 0),
        "condition_drop": condition_drop,
        "depth": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        "width": width,
        "heads": heads or _heads(state, width),
        "patch_size": patch,
        "position": "rotary_and_fixed" if "feat_rope.freqs_cos" in state else "fixed",
        "norm": "rms" if "blocks.0.norm1.weight" in state else "layer",
        "feed_forward": "swiglu" if swiglu else "gelu",
        "feed_forward_ratio": feed_forward_ratio(state, width, swiglu),
        "query_key_norm": query_key_norm(state),
    }


def build(state: Mapping[str, Tensor], arguments: Mapping[str, object]) -> DiffusionTransformer:
    """The network with the checkpoint's weights; the head keeps its first `outputs` predictions of every channel.

    Patches are read channel last here, so the patch embedding's columns are reordered. Raises ValueError when the
    checkpoint's position table is not the fixed one (it was trained).
    """
    network = DiffusionTransformer(**arguments)
    config = network.config
    weights = rename(state, NAMES, TABLES)
    kernel = weights["patch_embedding.weight"]  # [width, C, patch, patch]
    weights["patch_embedding.weight"] = kernel.permute(0, 2, 3, 1).flatten(1)
    weights["label_embedding.weight"] = with_null_row(weights["label_embedding.weight"], config.condition_drop)
    weights |= {name: with_shifts(value, config.width) for name, value in weights.items() if is_modulation(name)}
    for kind in ("weight", "bias"):
        rows = weights[f"head.linear.{kind}"].unflatten(0, (config.patch_size**2, -1))  # [patch^2, channels, ...]
        weights[f"head.linear.{kind}"] = rows[:, : config.outputs * config.dim].flatten(0, 1)
    return fill(network, weights)


def grid_of(table: Tensor) -> list[int]:
    """[rows, columns] of the grid whose fixed positions are `table` [N, width]; squares are tried first.

    Raises ValueError where it is of no grid: the table was trained.
    """
    tokens, width = table.shape
    rows = [count for count in range(1, tokens + 1) if tokens % count == 0]
    for count in sorted(rows, key=lambda count: abs(count - math.sqrt(tokens))):
        grid = [count, tokens // count]
        if width % 4 == 0 and torch.allclose(table.float(), fixed_positions(grid, width), atol=1e-2):
            return grid
    raise ValueError("pos_embed is not the fixed sine-cosine table; checkpoints with trained positions are not known")


def query_key_norm(state: Mapping[str, Tensor]) -> bool | str:
    """What the keys tell of the norm of queries and keys: none, RMS, or a layer norm, which has a bias."""
    if "blocks.0.attn.q_norm.bias" in state:
        return "layer"
    return "blocks.0.attn.q_norm.weight" in state


def is_modulation(name: str) -> bool:
    return name.startswith("blocks.") and ".modulation." in name


def with_shifts(modulation: Tensor, width: int) -> Tensor:
    """A block's modulation as [shift, scale, gate] twice: LightningDiT's without shifts gets shifts of zero."""
    if len(modulation) == 6 * width:
        return modulation
    parts: Sequence[Tensor] = modulation.chunk(4)  # scale, gate, scale, gate
    zero = torch.zeros_like(parts[0])
    return torch.cat([zero, *parts[:2], zero, *parts[2:]])


@torch.no_grad()
def negate(network: Denoiser) -> Denoiser:
    """The network whose prediction is the negative, exactly: a velocity towards data becomes one towards noise."""
    network.head.linear.weight.neg_()
    network.head.linear.bias.neg_()
    return network


def _heads(state: Mapping[str, Tensor], width: int) -> int:
    for key in ("blocks.0.attn.q_norm.weight", "feat_rope.freqs_cos"):
        if key in state:
            return width // state[key].shape[-1]
    return heads_of(width, HEADS)


def feed_forward_ratio(state: Mapping[str, Tensor], width: int, swiglu: bool) -> float:
    """A feed_forward_ratio that gives the stored hidden width; SwiGLU's is int(2/3 int(width ratio))."""
    if not swiglu:
        return ratio_of(len(state["blocks.0.mlp.fc1.weight"]), width)
    hidden = state["blocks.0.mlp.w12.weight"].shape[0] // 2
    if int(2 / 3 * 4 * width) == hidden:
        return 4.0  # as in every published size
    widened = math.ceil(1.5 * hidden)
    exact = int(width * (widened / width)) == widened
    return (widened if exact else widened + 0.5) / width
