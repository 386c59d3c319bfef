"""GigaTok's tokenizers (SilentView/GigaTok, arXiv:2504.08736), and those of ReToK, which extends them."""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.nn.query_transformer import Pooling
from pipeline.published.autoencoder_trunk import BLOCK
from pipeline.published.checkpoint import fill, heads_of, need, rename

WHAT = "GigaTok's tokenizers (SilentView/GigaTok: VQ_SB256_e200.pt) and ReToK's (zfu006/ReTok: VQ_SB256_e250.pt)"
HEADS = {512: 8, 768: 12, 1024: 16, 1280: 20, 1536: 24}  # by width, of every published size
DROPPED = (
    r"quantize\.codebook_used",  # the ids of the last batches
    r"s1to2decoder\.distill_mlp\..*",  # the head of the semantic loss, of training alone
)
HALVES = {"s2to1encoder": "encoder", "s1to2decoder": "decoder"}
MAPS = {"encoder": "map_encoder", "decoder": "pixel_decoder"}
COPIES = "latent_token_positional_embedding_comp"  # of ReToK's copies
WHOSE = "GigaTok"


def convert(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    decoder_heads: int | None = None,
    unit_norm: bool = True,
    image_size: int = 256,
    gradient: Literal["straight_through", "rotation"] = "rotation",
    pooling: Pooling = "levels",
) -> dict[str, object]:
    """{"tokenizer"} of a GigaTok state; ValueError for anything else.

    `heads` and `decoder_heads` follow from the widths of published sizes. `unit_norm` is `codebook_l2_norm` there,
    `pooling` is mean without `multi_level_query_init`, and `gradient` is straight_through without `rot`, which matters
    where the tokenizer is trained further. The head of the semantic loss stays behind.
    """
    arguments = shapes(state, heads, decoder_heads)
    arguments["bottleneck"] |= {"unit_norm": unit_norm, "gradient": gradient}
    node = {"kind": "gigatok", **arguments, "pooling": pooling}
    tokenizer = build_component("tokenizers", node, image_size=image_size)
    return {"tokenizer": fill(tokenizer, weights(state) | {"mean": tokenizer.mean, "std": tokenizer.std})}


def shapes(state: Mapping[str, Tensor], heads: int | None, decoder_heads: int | None) -> dict[str, object]:
    """The constructor arguments of GigaTok that the keys and shapes of `state` imply."""
    vocab, dim = need(state, "quantize.embedding.weight", WHOSE).shape
    width, z_channels = need(state, "s2to1encoder.encoder_embed.weight", WHOSE).shape
    wide = len(need(state, "s1to2decoder.decoder_embed.weight", WHOSE))
    base = len(need(state, "encoder.conv_in.weight", WHOSE))
    read, made = level_widths(state, "encoder"), level_widths(state, "decoder")[::-1]
    if not read or made[0] % base or any(each % base for each in (*read, *made)):
        raise ValueError(f"not a {WHOSE} checkpoint: levels of {read} and {made} channels, of a base of {base}")
    return {
        "bottleneck": {"kind": "vector_quantize", "dim": dim, "vocab": vocab},
        "tokens": len(need(state, "s2to1encoder.latent_token_positional_embedding", WHOSE)),
        "redundant": len(state.get(f"s2to1encoder.{COPIES}", ())),
        "width": width,
        "depth": depth(state, "s2to1encoder"),
        "heads": heads or heads_of(width, HEADS),
        "decoder_width": wide,
        "decoder_depth": depth(state, "s1to2decoder"),
        "decoder_heads": decoder_heads or heads_of(wide, HEADS, "decoder_heads"),
        "conv_width": base,
        "multipliers": [each // base for each in read],
        "decoder_multipliers": None if made == read else [each // base for each in made],
        "blocks": count(state, r"encoder\.conv_blocks\.0\.res\.(\d+)\..*"),
        "z_channels": z_channels,
        "adaptive": "decoder.adaptive.0.gamma.weight" in state,
        "upsampling": "nearest" if "decoder.conv_blocks.0.upsample.conv.weight" in state else "depth_to_space",
    }


def level_widths(state: Mapping[str, Tensor], half: str) -> list[int]:
    """Channels of the levels of a convolutional half, in its own order."""
    levels = count(state, rf"{half}\.conv_blocks\.(\d+)\..*")
    return [len(need(state, f"{half}.conv_blocks.{i}.res.0.conv1.weight", WHOSE)) for i in range(levels)]


def depth(state: Mapping[str, Tensor], half: str) -> int:
    need(state, f"{half}.transformer.0.linear1.weight", WHOSE)
    return count(state, rf"{half}\.transformer\.(\d+)\..*")


def count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that the pattern's group has in a key; 0 where no key matches."""
    return 1 + max((int(match[1]) for key in state if (match := re.fullmatch(pattern, key))), default=-1)


def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under the names here."""
    state = dict(state)
    for half in HALVES:
        positions = f"{half}.latent_token_positional_embedding"
        if f"{half}.{COPIES}" in state:
            state[positions] = torch.cat([need(state, positions, WHOSE), state.pop(f"{half}.{COPIES}")])
        for key in [key for key in state if re.fullmatch(rf"{half}\..*\.in_proj_(weight|bias)", key)]:
            block, _, kind = key.rpartition(".in_proj_")
            for name, part in zip(("query", "key", "value"), state.pop(key).chunk(3)):
                state[f"{block}.{name}.{kind}"] = part
    for key in [key for key in state if ".upsample.conv1." in key]:  # four maps there, four outputs a channel here
        state[key] = state[key].unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)
    return {name: in_shape(name, value) for name, value in rename(state, names(), DROPPED).items()}


def in_shape(name: str, value: Tensor) -> Tensor:
    """Tables and 1x1 kernels as matrices."""
    if name.endswith("positions"):
        return value[:, 0]
    return value[:, :, 0, 0] if value.ndim == 4 and value.shape[2:] == (1, 1) and "shortcut" not in name else value


def names() -> dict[str, str]:
    """Regular expressions of GigaTok's keys and what they become."""
    tail = r"\.(weight|bias)"
    renames = {r"quantize\.embedding\.weight": "neck.codebook", rf"((?:post_)?quant_conv){tail}": r"\1.\2"}
    for theirs, ours in MAPS.items():
        levels = "down_blocks" if theirs == "encoder" else "up_blocks"
        renames[rf"{theirs}\.(conv_in|conv_out){tail}"] = rf"{ours}.\1.\2"
        renames[rf"{theirs}\.norm_out{tail}"] = rf"{ours}.conv_norm_out.\1"
        for part, mine in BLOCK.items():
            renames[rf"{theirs}\.mid\.(\d+)\.{part}{tail}"] = rf"{ours}.mid_block.resnets.\1.{mine}.\2"
            place = rf"{theirs}\.conv_blocks\.(\d+)\.res\.(\d+)\.{part}{tail}"
            renames[place] = rf"{ours}.{levels}.\1.resnets.\2.{mine}.\3"
    down, up = "map_encoder.down_blocks", "pixel_decoder.up_blocks"
    renames[rf"encoder\.conv_blocks\.(\d+)\.downsample\.conv{tail}"] = rf"{down}.\1.downsamplers.0.conv.\2"
    renames[rf"decoder\.conv_blocks\.(\d+)\.upsample\.conv1?{tail}"] = rf"{up}.\1.upsamplers.0.conv.\2"
    for theirs, ours in {"gamma": "scale", "beta": "shift"}.items():
        renames[rf"decoder\.adaptive\.(\d+)\.{theirs}{tail}"] = rf"pixel_decoder.norms.\1.{ours}.\2"
    for theirs, ours in HALVES.items():
        renames |= {rf"{theirs}\.{key}": rf"{ours}.{mine}" for key, mine in transformer_names(tail, ours).items()}
    return renames


def transformer_names(tail: str, half: str) -> dict[str, str]:
    """As `names`, of what a transformer has, below its own name."""
    renames = {
        rf"(?:en|de)coder_embed{tail}": r"embedding.\1",
        rf"ln_pre{tail}": r"norm_in.\1",
        rf"ln_post{tail}": r"norm_out.\1",
        rf"global_proj{tail}": r"query.\1",
        rf"conv_out{tail}": r"projection.\1" if half == "encoder" else r"conv_out.\1",
        r"positional_embedding": "place_positions",
        r"latent_token_positional_embedding": "token_positions",
        rf"transformer\.(\d+)\.(norm[123]){tail}": r"blocks.\1.\2.\3",
        rf"transformer\.(\d+)\.linear1{tail}": r"blocks.\1.up.\2",
        rf"transformer\.(\d+)\.linear2{tail}": r"blocks.\1.down.\2",
    }
    for theirs, ours in {"self_attn": "attention", "multihead_attn": "reading"}.items():
        renames[rf"transformer\.(\d+)\.{theirs}\.(query|key|value){tail}"] = rf"blocks.\1.{ours}.\2.\3"
        renames[rf"transformer\.(\d+)\.{theirs}\.out_proj{tail}"] = rf"blocks.\1.{ours}.proj.\2"
    return renames
