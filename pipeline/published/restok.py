"""ResTok's tokenizers (Kwai-Kolors/ResTok, arXiv:2601.03955)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, heads_of, need, rename
from pipeline.published.maskgit_vqgan import decoder_names, half, shapes
from pipeline.ranges import Count

WHAT = "ResTok's tokenizers (Kwai-Kolors/ResTok: xushu-me/restok_l_128.r256_in1k)"
HEADS = {512: 8, 768: 12, 1024: 16}  # by width, of every published size
WHOSE = "ResTok"
HALVES = ("encoder", "decoder")
DROPPED = (r"vf_proj(_dec)?\.(weight|bias)",)  # heads of the losses that compare features, of training alone
LISTS = {"level_embedding": "level_embedding", "latent_token_level_embedding": "token_level_embedding"}
BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.q_norm": "attention.query_norm",
    "attn.k_norm": "attention.key_norm",
    "attn.proj": "attention.proj",
    "mlp.fc1": "up",
    "mlp.fc2": "down",
}
VECTORS = {"mask_token": "mask_token", "latent_mask_token": "dropped_token", "feat_mask_token": "feature_token"}


def convert(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    decoder_heads: int | None = None,
    unit_norm: bool = True,
    image_size: int = 256,
    single: Count = 4,
    interleaved: bool = True,
) -> dict[str, object]:
    """{"tokenizer"} of a ResTok state; ValueError for anything else.

    `heads` and `decoder_heads` follow from the widths of published sizes. `unit_norm` is `use_l2_norm` there, and
    `interleaved` is `is_legacy`. The first `single` tokens are levels of their own, as HAR makes them. Where the state
    has the second pass of the decoder it is kept; heads of losses stay behind.
    """
    arguments = sizes(state, heads, decoder_heads) | {"single": single, "interleaved": interleaved}
    arguments["bottleneck"] |= {"unit_norm": unit_norm}
    tokenizer = build_component("tokenizers", {"kind": "restok", **arguments}, image_size=image_size)
    weights = renamed(state, len(arguments["multipliers"]), arguments["blocks"])
    return {"tokenizer": fill(tokenizer, weights | {"mean": tokenizer.mean, "std": tokenizer.std})}


def sizes(state: Mapping[str, Tensor], heads: int | None, decoder_heads: int | None) -> dict[str, object]:
    """The constructor arguments of ResTok that the keys and shapes of `state` imply."""
    vocab, dim = need(state, "quantize.embedding.weight", WHOSE).shape
    width, z_channels = need(state, "encoder.patch_embed.weight", WHOSE).shape[:2]
    wide = need(state, "decoder.mask_token", WHOSE).shape[-1]
    convolutions = shapes(state, "pixel_decoder")
    return {
        "bottleneck": {"kind": "vector_quantize", "dim": dim, "vocab": vocab},
        "width": width,
        "depth": count(state, r"encoder\.blocks\.(\d+)\."),
        "heads": heads or heads_of(width, HEADS),
        "decoder_width": wide,
        "decoder_depth": count(state, r"decoder\.blocks\.(\d+)\."),
        "decoder_heads": decoder_heads or heads_of(wide, HEADS, "decoder_heads"),
        "token_levels": count(state, r"encoder\.latent_token_level_embedding\.(\d+)$"),
        "image_levels": count(state, r"encoder\.level_embedding\.(\d+)$"),
        "conv_width": convolutions["width"],
        "multipliers": convolutions["multipliers"],
        "blocks": convolutions["blocks"],
        "z_channels": z_channels,
        "feature_pass": "decoder.feat_mask_token" in state,
    }


def count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that the pattern's group has in a key; ValueError where no key has one."""
    numbers = [int(match[1]) for key in state if (match := re.match(pattern, key))]
    if not numbers:
        raise ValueError(f"not a {WHOSE} checkpoint: no key is like {pattern}")
    return 1 + max(numbers)


def renamed(state: Mapping[str, Tensor], levels: int, blocks: int) -> dict[str, Tensor]:
    """The state under the names here; vectors of a list are rows of one table."""
    state = dict(state)
    for side in HALVES:
        for theirs in LISTS:
            keys = [key for key in state if re.fullmatch(rf"{side}\.{theirs}\.\d+", key)]
            if keys:
                rows = sorted(keys, key=lambda key: int(key.rpartition(".")[2]))
                state[f"{side}.{theirs}"] = torch.cat([state.pop(key) for key in rows])
    return {name: in_shape(name, value) for name, value in rename(state, names(levels, blocks), DROPPED).items()}


def in_shape(name: str, value: Tensor) -> Tensor:
    """Tokens as rows, and kernels of the transformers' ends as matrices."""
    if name.endswith("_token"):
        return value[0]
    return (
        value.flatten(1)
        if re.fullmatch(r"(encoder|decoder)\.(embedding|exits\.\d+|projection)\.weight", name)
        else value
    )


def names(levels: int, blocks: int) -> dict[str, str]:
    """Regular expressions of ResTok's keys and what they become."""
    tail, sides = r"\.(weight|bias)", r"(encoder|decoder)"
    renames = {
        r"quantize\.embedding\.weight": "neck.codebook",
        rf"{sides}\.ln_pre{tail}": r"\1.norm_in.\2",
        rf"{sides}\.ln_post{tail}": r"\1.norm_out.\2",
        rf"encoder\.patch_embed{tail}": r"encoder.embedding.\1",
        rf"encoder\.conv_out\.(\d+){tail}": r"encoder.exits.\1.\2",
        rf"decoder\.decoder_embed\.(\d+){tail}": r"decoder.entries.\1.\2",
        rf"decoder\.ffn{tail}": r"decoder.projection.\1",
        rf"{sides}\.blocks\.(\d+)\.gamma_([12])": r"\1.blocks.\2.scale\3",
        rf"{sides}\.blocks\.(\d+)\.attn\.qkv\.weight": r"\1.blocks.\2.attention.qkv.weight",
        rf"{sides}\.blocks\.(\d+)\.attn\.q_bias": r"\1.blocks.\2.attention.qkv.query_bias",
        rf"{sides}\.blocks\.(\d+)\.attn\.v_bias": r"\1.blocks.\2.attention.qkv.value_bias",
    }
    renames |= {rf"{sides}\.{theirs}": rf"\1.{ours}" for theirs, ours in LISTS.items()}
    renames |= {rf"decoder\.{theirs}": f"decoder.{ours}" for theirs, ours in VECTORS.items()}
    for theirs, ours in BLOCK.items():
        renames[rf"{sides}\.blocks\.(\d+)\.{re.escape(theirs)}{tail}"] = rf"\1.blocks.\2.{ours}.\3"
    places = {i: i for i in range(levels)}
    return (
        renames
        | half("pixel_encoder", "pixel_encoder", places)
        | decoder_names("pixel_decoder", "pixel_decoder", levels, blocks)
    )
