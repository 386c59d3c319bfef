"""MAR checkpoints (LTH14/mar, arXiv:2406.11838)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.networks.masked_latent_transformer import MaskedLatentTransformer
from pipeline.published.checkpoint import fill, heads_of, need, ratio_of, rename
from pipeline.ranges import Count

WHAT = "MAR, masked continuous tokens with a diffusion head (LTH14/mar: mar_{base,large,huge} checkpoint-last.pth)"
HEADS = {768: 12, 1024: 16, 1280: 16}  # by width, of the published sizes

BLOCK = {
    r"(encoder|decoder)_blocks\.(\d+)\.(norm[12])\.(weight|bias)": r"\1_blocks.\2.\3.\4",
    r"(encoder|decoder)_blocks\.(\d+)\.attn\.(qkv|proj)\.(weight|bias)": r"\1_blocks.\2.attention.\3.\4",
    r"(encoder|decoder)_blocks\.(\d+)\.mlp\.fc1\.(weight|bias)": r"\1_blocks.\2.feed_forward.up.\3",
    r"(encoder|decoder)_blocks\.(\d+)\.mlp\.fc2\.(weight|bias)": r"\1_blocks.\2.feed_forward.down.\3",
}
HEAD = {
    r"diffloss\.net\.input_proj\.(weight|bias)": r"head.embedding.\1",
    r"diffloss\.net\.time_embed\.mlp\.0\.(weight|bias)": r"head.time_embedding.up.\1",
    r"diffloss\.net\.time_embed\.mlp\.2\.(weight|bias)": r"head.time_embedding.down.\1",
    r"diffloss\.net\.cond_embed\.(weight|bias)": r"head.state_embedding.\1",
    r"diffloss\.net\.res_blocks\.(\d+)\.in_ln\.(weight|bias)": r"head.blocks.\1.norm.\2",
    r"diffloss\.net\.res_blocks\.(\d+)\.mlp\.0\.(weight|bias)": r"head.blocks.\1.up.\2",
    r"diffloss\.net\.res_blocks\.(\d+)\.mlp\.2\.(weight|bias)": r"head.blocks.\1.down.\2",
    r"diffloss\.net\.res_blocks\.(\d+)\.adaLN_modulation\.1\.(weight|bias)": r"head.blocks.\1.modulation.\2",
    r"diffloss\.net\.final_layer\.adaLN_modulation\.1\.(weight|bias)": r"head.output.modulation.\1",
    r"diffloss\.net\.final_layer\.linear\.(weight|bias)": r"head.output.linear.\1",
}
NAMES = {
    r"class_emb\.weight": r"label_embedding.weight",
    r"fake_latent": r"null",
    r"z_proj\.(weight|bias)": r"token_embedding.\1",
    r"z_proj_ln\.(weight|bias)": r"norm_in.\1",
    r"encoder_pos_embed_learned": r"encoder_positions",
    r"encoder_norm\.(weight|bias)": r"encoder_norm.\1",
    r"decoder_embed\.(weight|bias)": r"decoder_embedding.\1",
    r"mask_token": r"mask_token",
    r"decoder_pos_embed_learned": r"decoder_positions",
    r"decoder_norm\.(weight|bias)": r"decoder_norm.\1",
    r"diffusion_pos_embed_learned": r"state_positions",
    **BLOCK,
    **HEAD,
}


def convert(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    decoder_heads: int | None = None,
    patch_size: Count = 1,
    dropout: float = 0.1,
    condition_drop: float = 0.1,
) -> dict[str, object]:
    """{"network", "objective"} of a MAR state, of square codes.

    Heads follow from the widths for the published sizes; `patch_size` of the authors' script is 1 everywhere, and
    `dropout` is that of its training. Raises ValueError for keys or shapes that are not MAR's.
    """
    width, channels = need(state, "z_proj.weight", "MAR").shape
    decoder_width, places = len(state["decoder_embed.weight"]), state["diffusion_pos_embed_learned"].shape[1]
    dim, side = channels // patch_size**2, math.isqrt(places)
    if side**2 != places or dim * patch_size**2 != channels:
        raise ValueError(f"{places} tokens of {channels} channels are no square of patches of size {patch_size}")
    network = MaskedLatentTransformer(
        grid=[side * patch_size] * 2,
        dim=dim,
        num_classes=len(state["class_emb.weight"]),
        depth=depth_of(state, "encoder_blocks."),
        width=width,
        heads=heads or heads_of(width, HEADS),
        outputs=len(state["diffloss.net.final_layer.linear.bias"]) // channels,
        decoder_depth=depth_of(state, "decoder_blocks."),
        decoder_width=decoder_width,
        decoder_heads=decoder_heads or heads_of(decoder_width, HEADS, "decoder_heads"),
        patch_size=patch_size,
        buffer=state["encoder_pos_embed_learned"].shape[1] - places,
        feed_forward_ratio=ratio_of(len(state["encoder_blocks.0.mlp.fc1.weight"]), width),
        dropout=dropout,
        attention_dropout=dropout,
        head_depth=depth_of(state, "diffloss.net.res_blocks."),
        head_width=len(state["diffloss.net.input_proj.weight"]),
        condition_drop=condition_drop,
    )
    fill(network, weights_of(state, patch_size))
    return {"network": network, "objective": build_component("objectives", {"kind": "masked_latent"})}


def depth_of(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks there are below a prefix."""
    return 1 + max((int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix)), default=-1)


def weights_of(state: Mapping[str, Tensor], patch_size: int) -> dict[str, Tensor]:
    """The weights under our names; channels of a patch, [C, rows, columns] there, are [rows, columns, C] here."""
    weights = rename(state, NAMES)
    weights["label_embedding.weight"] = torch.cat([weights["label_embedding.weight"], weights.pop("null")])
    for name in ("encoder_positions", "decoder_positions", "state_positions"):
        weights[name] = weights[name][0]
    weights["mask_token"] = weights["mask_token"][0, 0]
    area = patch_size**2
    for name in ("token_embedding.weight", "head.embedding.weight"):
        weights[name] = weights[name].unflatten(1, (-1, area)).transpose(1, 2).flatten(1)
    for name in ("head.output.linear.weight", "head.output.linear.bias"):
        rows = weights[name].unflatten(0, (-1, len(weights["head.embedding.weight"][0]) // area, area))
        weights[name] = rows.transpose(1, 2).flatten(0, 2)  # [outputs, area, C, ...]
    return weights
