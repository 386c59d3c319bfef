"""FQGAN's tokenizers (showlab/FQGAN, arXiv:2411.16681)."""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.autoencoder_trunk import flat
from pipeline.published.checkpoint import fill, heads_of, need, rename
from pipeline.published.llamagen_vq import names as llamagen_names
from pipeline.published.llamagen_vq import shapes as llamagen_shapes

WHAT = "FQGAN tokenizers (ZechenBai/FQGAN: fqgan_dual_ds16.pt, fqgan_triple_ds16.pt, and _ds8)"
WHOSE = "FQGAN tokenizer"
ADAPTERS = {  # branches in the order of their codes: the adapter's name there
    "vis": "visual_head",
    "sem": "semantic_head",
    "sem_mid": "semantic_head_mid",
    "sem_high": "semantic_head_high",
}
HEADS = {512: 8}  # of the adapters by width
TRAINING = (r"quantize_\w+\.codebook_used", r"\w*feat_pred\w*\..*")  # use of the codes; heads of the semantic losses


def convert(
    state: Mapping[str, Tensor], heads: int | None = None, unit_norm: bool = True, image_size: int | None = None
) -> dict[str, object]:
    """{"tokenizer"} of an FQGAN state; ValueError for anything else.

    `heads` of the adapters follow from the published width. `unit_norm` says whether vectors and codebooks have length
    one (`codebook_l2_norm` there); all released ones do. Without `image_size` the places of the adapters are a square.
    """
    branches = [name for name in ADAPTERS if f"quantize_{name}.embedding.weight" in state]
    if len(branches) < 2:
        need(state, "quantize_sem.embedding.weight", WHOSE)
    arguments, side = shapes(state, branches, heads, unit_norm)
    renamed = {key: flat(key, value) for key, value in rename(state, names(branches), TRAINING).items()}
    tokenizer = build_component("tokenizers", {"kind": "fqgan", **arguments}, image_size=image_size or side)
    return {"tokenizer": fill(tokenizer, renamed | {"mean": tokenizer.mean, "std": tokenizer.std})}


def shapes(
    state: Mapping[str, Tensor], branches: list[str], heads: int | None, unit_norm: bool
) -> tuple[dict[str, object], int]:
    """The constructor arguments of FQGAN that the keys and shapes of `state` imply, and the side of its images."""
    first = branches[0]
    alike = dict(state) | {"quantize.embedding.weight": state[f"quantize_{first}.embedding.weight"]}
    arguments = llamagen_shapes(alike, unit_norm)
    positions = need(state, f"encoder.{ADAPTERS[first]}.0.positional_embedding", WHOSE)
    blocks = rf"encoder\.{ADAPTERS[first]}\.0\.transformer\.(\d+)\.ln_1\.weight"
    depth = 1 + max(int(match[1]) for key in state if (match := re.fullmatch(blocks, key)))
    arguments.pop("decoder_width", None)
    base, made = arguments["width"], decoder_widths(state)
    if any(each % base for each in made):
        raise ValueError(f"not an {WHOSE} checkpoint: levels of the decoder of {made} channels, of a base of {base}")
    multipliers = [each // base for each in made]
    node = {"kind": "factorised", "codebooks": len(branches), "bottleneck": arguments["bottleneck"]}
    arguments |= {"bottleneck": node, "branches": len(branches), "adapter_depth": depth}
    arguments["adapter_heads"] = heads or heads_of(positions.shape[1], HEADS)
    if multipliers != arguments["multipliers"]:
        arguments["decoder_multipliers"] = multipliers
    return arguments, math.isqrt(len(positions)) * 2 ** (len(made) - 1)


def decoder_widths(state: Mapping[str, Tensor]) -> list[int]:
    """Channels of the decoder's levels, the level of full resolution first."""
    levels = [i for i in range(len(state)) if f"decoder.conv_blocks.{i}.res.0.conv1.weight" in state]
    return [len(state[f"decoder.conv_blocks.{i}.res.0.conv1.weight"]) for i in reversed(levels)]


def names(branches: list[str]) -> dict[str, str]:
    """Regular expressions of FQGAN's keys and what they become: LlamaGen's, and those of the branches."""
    tail = r"\.(weight|bias)"
    renames = {}
    for number, name in enumerate(branches):
        mine, adapter = f"adapters.{number}", rf"encoder\.{ADAPTERS[name]}\.0"
        renames |= {
            rf"quantize_{name}\.embedding\.weight": f"neck.parts.{number}.codebook",
            rf"quant_conv_{name}{tail}": rf"{mine}.quant_conv.\1",
            rf"encoder\.norm_out_{name}{tail}": rf"{mine}.conv_norm_out.\1",
            rf"encoder\.conv_out_{name}{tail}": rf"{mine}.conv_out.\1",
        }
        renames |= {rf"{adapter}\.{key}": f"{mine}.adapter.{ours}" for key, ours in transformer_names(tail).items()}
    return renames | llamagen_names()


def transformer_names(tail: str = r"\.(weight|bias)") -> dict[str, str]:
    """As `names`, of an adapter's transformer and of that of a semantic loss's head, below its own name."""
    return {
        "positional_embedding": "positions",
        rf"ln_pre{tail}": r"norm_in.\1",
        rf"ln_post{tail}": r"norm_out.\1",
        rf"transformer\.(\d+)\.ln_([12]){tail}": r"blocks.\1.norm\2.\3",
        r"transformer\.(\d+)\.attn\.in_proj_(weight|bias)": r"blocks.\1.attention.qkv.\2",
        rf"transformer\.(\d+)\.attn\.out_proj{tail}": r"blocks.\1.attention.proj.\2",
        rf"transformer\.(\d+)\.mlp\.c_fc{tail}": r"blocks.\1.up.\2",
        rf"transformer\.(\d+)\.mlp\.c_proj{tail}": r"blocks.\1.down.\2",
    }
