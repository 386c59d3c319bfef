"""LARP's tokenizers of clips, and of images as clips of one frame (hywang66/LARP, arXiv:2410.21264)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, heads_of, need, rename
from pipeline.ranges import Count, Positive

WHAT = "LARP's tokenizer of clips (hywang66/LARP-L-long-tokenizer: model.safetensors)"
WHOSE = "LARP tokenizer"
HEADS = {384: 6, 512: 8, 768: 12, 1024: 16}  # by width
TEMPERATURE = 0.03  # of cosines
BLOCKS = {
    r"(encoder|decoder)\.blocks\.(\d+)\.norm([12])\.(weight|bias)": r"\1.blocks.\2.norm\3.\4",
    r"(encoder|decoder)\.blocks\.(\d+)\.attn\.qkv\.weight": r"\1.blocks.\2.attention.qkv.weight",
    r"(encoder|decoder)\.blocks\.(\d+)\.attn\.proj\.(weight|bias)": r"\1.blocks.\2.attention.proj.\3",
    r"(encoder|decoder)\.blocks\.(\d+)\.mlp\.fc1\.(weight|bias)": r"\1.blocks.\2.up.\3",
    r"(encoder|decoder)\.blocks\.(\d+)\.mlp\.fc2\.(weight|bias)": r"\1.blocks.\2.down.\3",
}
NAMES = BLOCKS | {
    r"x_embedder\.proj\.(weight|bias)": r"encoder.patch_embedding.\1",
    r"encoder_latent_query_embed": "encoder.queries",
    r"decoder_patch_query_token_type_embed": "decoder.query_type",
    r"bottleneck\.in_linear\.(weight|bias)": r"encoder.projection.\1",
    r"bottleneck\.out_linear\.(weight|bias)": r"decoder.embedding.\1",
    r"bottleneck\.regularizer\.embedding\.weight": "neck.codebook",
    r"final_layer\.norm_final\.(weight|bias)": r"decoder.norm_out.\1",
    r"final_layer\.linear\.(weight|bias)": r"decoder.pixels.\1",
    r"prior_model\.pos_emb": "prior.positions",
    r"prior_model\.input_proj\.(weight|bias)": r"prior.embedding.\1",
    r"prior_model\.ln_f\.(weight|bias)": r"prior.norm_out.\1",
    r"prior_model\.head\.(weight|bias)": r"prior.head.\1",
    r"prior_model\.blocks\.(\d+)\.ln([12])\.(weight|bias)": r"prior.blocks.\1.norm\2.\3",
    r"prior_model\.blocks\.(\d+)\.attn\.proj\.(weight|bias)": r"prior.blocks.\1.attention.proj.\2",
    r"prior_model\.blocks\.(\d+)\.mlp\.0\.(weight|bias)": r"prior.blocks.\1.feed_forward.up.\2",
    r"prior_model\.blocks\.(\d+)\.mlp\.2\.(weight|bias)": r"prior.blocks.\1.feed_forward.down.\2",
}
PARTS = r"prior_model\.blocks\.(\d+)\.attn\.(query|key|value)\.(weight|bias)"  # of one matrix here
TABLES = {
    "encoder_patch_pe": "encoder.positions",
    "decoder_latent_pe": "decoder.positions",
    "decoder_patch_query_embed": "decoder.queries",
}


def convert(
    state: Mapping[str, Tensor],
    image_size: Count = 128,
    frames: Count = 16,
    heads: Count | None = None,
    decoder_heads: Count | None = None,
    prior_heads: Count = 6,
    temperature: Positive = TEMPERATURE,
) -> dict[str, object]:
    """{"tokenizer"} of a state of LARP's tokenizer; ValueError for anything else.

    No weight tells the pixels of a side and the frames of a clip, 128 and 16 by default, the heads of the prior, and
    the temperature of the quantiser's softmax of cosines. `heads` and `decoder_heads` follow from usual widths. Tables
    of positions are computed here, and compared with those of the state.
    """
    arguments = shapes(state, image_size, frames) | {"prior_heads": prior_heads}
    width, decoder_width = arguments["width"], arguments["decoder_width"]
    arguments["heads"] = heads or heads_of(width, HEADS)
    arguments["decoder_heads"] = decoder_heads or heads_of(decoder_width, HEADS, "decoder_heads")
    arguments["bottleneck"]["sampling_temperature"] = 2 * temperature  # of squared distances
    tokenizer = build_component("tokenizers", {"kind": "larp", **arguments}, image_size=image_size)
    check_tables(state, tokenizer)
    renamed = rename(state, NAMES, (PARTS, *TABLES))
    for name in ("decoder.query_type", "prior.positions"):
        if name in renamed:
            renamed[name] = renamed[name].flatten(0, -2) if name == "prior.positions" else renamed[name].flatten()
    renamed["encoder.patch_embedding.weight"] = renamed["encoder.patch_embedding.weight"].flatten(1)
    for name in ("decoder.pixels.weight", "decoder.pixels.bias"):
        renamed[name] = channels_first(renamed[name], tokenizer.config.frame_patch, tokenizer.config.patch_size)
    renamed |= joined_parts(state)
    return {"tokenizer": fill(tokenizer, renamed | {"mean": tokenizer.mean, "std": tokenizer.std})}


def shapes(state: Mapping[str, Tensor], image_size: int, frames: int) -> dict[str, object]:
    """The constructor arguments of Larp that the shapes imply, heads left out."""
    kernel = need(state, "x_embedder.proj.weight", WHOSE)
    patch, depth_of_patch = kernel.shape[-1], kernel.shape[2] if kernel.ndim == 5 else 1
    decoder_width, dim = need(state, "bottleneck.out_linear.weight", WHOSE).shape
    prior = state.get("prior_model.input_proj.weight")
    places = (image_size // patch) ** 2 * (frames // depth_of_patch)
    if places != (found := need(state, "encoder_patch_pe", WHOSE).shape[-2]):
        raise ValueError(
            f"this LARP tokenizer has {found} patches, and {frames} frames of {image_size} pixels have {places};"
            " state image_size and frames"
        )
    rows = need(state, "bottleneck.regularizer.embedding.weight", WHOSE)
    return {
        "bottleneck": {"kind": "vector_quantize", "dim": dim, "vocab": len(rows)},
        "tokens": need(state, "encoder_latent_query_embed", WHOSE).shape[-2],
        "width": len(kernel),
        "depth": depth(state, "encoder"),
        "patch_size": patch,
        "decoder_width": decoder_width,
        "decoder_depth": depth(state, "decoder"),
        "query_type": "decoder_patch_query_token_type_embed" in state,
        "prior_width": 384 if prior is None else len(prior),
        "prior_depth": 0 if prior is None else depth(state, "prior_model"),
        "frames": frames,
        "frame_patch": depth_of_patch,
    }


def depth(state: Mapping[str, Tensor], stack: str) -> int:
    return 1 + max((int(key.split(".")[2]) for key in state if key.startswith(f"{stack}.blocks.")), default=-1)


def check_tables(state: Mapping[str, Tensor], tokenizer: torch.nn.Module) -> None:
    """ValueError where a table of positions is not the fixed one, as that of a model which learned it."""
    for theirs, ours in TABLES.items():
        table, given = tokenizer.get_buffer(ours), need(state, theirs, WHOSE)
        if given.shape[-2:] != table.shape or not torch.allclose(given.float().reshape(table.shape), table, atol=1e-3):
            raise ValueError(f"{theirs} is not the fixed sine-cosine table that released LARP tokenizers have")


def channels_first(rows: Tensor, frames: int, side: int) -> Tensor:
    """Outputs for pixels in the order of frame, row, column, channel, in that of channel, frame, row, column."""
    return rows.unflatten(0, (frames, side, side, -1)).movedim(3, 0).flatten(0, 3)


def joined_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values of the prior's attention, in one matrix a layer."""
    joined = {}
    for key in state:
        if (match := re.fullmatch(PARTS, key)) and match[2] == "query":
            parts = [need(state, key.replace("query", part), WHOSE) for part in ("query", "key", "value")]
            joined[f"prior.blocks.{match[1]}.attention.qkv.{match[3]}"] = torch.cat(parts)
    return joined
