"""MaskGIT's VQGAN in PyTorch (bytedance/1d-tokenizer, arXiv:2406.07550 and 2411.00776)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, need, rename

WHAT = "MaskGIT's VQGAN, the tokenizer of RAR (fun-research/TiTok: maskgit-vqgan-imagenet-f16-256.bin)"
IMAGE_SIZE = 256  # what it is trained at; no weight depends on it


def convert(state: Mapping[str, Tensor]) -> dict[str, object]:
    """{"tokenizer"} of a MaskGIT-VQGAN state; ValueError for keys or shapes that are not of one."""
    vocab, dim = need(state, "quantize.embedding.weight", "MaskGIT-VQGAN").shape
    decoder = shapes(state)
    arguments = decoder | {"bottleneck": {"kind": "vector_quantize", "dim": dim, "vocab": vocab, "unit_norm": False}}
    renamed = rename(state, names(len(decoder["multipliers"]), decoder["blocks"]))
    tokenizer = build_component("tokenizers", {"kind": "maskgit_vqgan", **arguments}, image_size=IMAGE_SIZE)
    return {"tokenizer": fill(tokenizer, renamed | {"mean": tokenizer.mean, "std": tokenizer.std})}


def shapes(state: Mapping[str, Tensor], decoder: str = "decoder") -> dict[str, object]:
    """`width`, `multipliers` and `blocks` that the decoder at the prefix `decoder` implies."""
    need(state, f"{decoder}.up.0.block.0.conv1.weight", "MaskGIT-VQGAN")
    width = len(need(state, f"{decoder}.norm_out.weight", "MaskGIT-VQGAN"))
    levels = [i for i in range(len(state)) if f"{decoder}.up.{i}.block.0.conv1.weight" in state]
    multipliers = [len(state[f"{decoder}.up.{i}.block.0.conv1.weight"]) // width for i in levels]
    blocks = sum(f"{decoder}.up.0.block.{j}.conv1.weight" in state for j in range(len(state)))
    return {"width": width, "multipliers": multipliers, "blocks": blocks}


def names(levels: int, blocks: int) -> dict[str, str]:
    """Regular expressions of the keys and what they become; theirs count a decoder's levels from full resolution."""
    return {
        r"quantize\.embedding\.weight": "neck.codebook",
        **half("encoder", "encoder", {i: i for i in range(levels)}),
        **decoder_names("decoder", "decoder", levels, blocks),
    }


def decoder_names(theirs: str, ours: str, levels: int, blocks: int) -> dict[str, str]:
    """The same of a decoder alone, from the prefix `theirs` to the prefix `ours`."""
    renames = half(theirs, ours, {i: levels - 1 - i for i in range(levels)})
    for i in range(1, levels):
        resample = f"{ours}.levels.{levels - 1 - i}.{blocks}.conv"  # it follows the residual blocks
        renames[rf"{theirs}\.up\.{i}\.upsample_conv\.(weight|bias)"] = rf"{resample}.\1"
    return renames


def half(theirs: str, ours: str, places: Mapping[int, int]) -> dict[str, str]:
    """What encoder and decoder share; level i of theirs is level places[i] of ours."""
    renames = {rf"{theirs}\.(conv_in|norm_out|conv_out)\.(weight|bias)": rf"{ours}.\1.\2"}
    rows = [(rf"{theirs}\.(?:down|up)\.{i}\.block", f"{ours}.levels.{place}") for i, place in places.items()]
    for theirs_at, ours_at in [*rows, (rf"{theirs}\.mid", f"{ours}.middle")]:
        renames[rf"{theirs_at}\.(\d+)\.(norm1|norm2|conv1|conv2)\.(weight|bias)"] = rf"{ours_at}.\1.\2.\3"
        renames[rf"{theirs_at}\.(\d+)\.nin_shortcut\.weight"] = rf"{ours_at}.\1.shortcut.weight"
    return renames
