"""LlamaGen's VQ tokenizers (FoundationVision/LlamaGen, arXiv:2406.06525)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.autoencoder_trunk import ATTENTION, BLOCK, flat
from pipeline.published.checkpoint import fill, need, rename

WHAT = "VQ tokenizers of LlamaGen (vq_ds16_c2i.pt, vq_ds8_c2i.pt, vq_ds16_t2i.pt)"
IMAGE_SIZE = 256  # what these are trained at; no weight depends on it
TRAINING = (r"quantize\.codebook_used",)  # the ids of the last batches, for a count of how many are used


def convert(state: Mapping[str, Tensor], unit_norm: bool = True) -> dict[str, object]:
    """{"tokenizer"} of a LlamaGen VQ state; ValueError for anything else.

    `unit_norm` says whether vectors and codebook have length one (`codebook_l2_norm` there); all released ones do.
    """
    arguments = shapes(state, unit_norm)
    renamed = {key: flat(key, value) for key, value in rename(state, names(), TRAINING).items()}
    tokenizer = build_component("tokenizers", {"kind": "conv_autoencoder", **arguments}, image_size=IMAGE_SIZE)
    return {"tokenizer": fill(tokenizer, renamed | {"mean": tokenizer.mean, "std": tokenizer.std})}


def shapes(state: Mapping[str, Tensor], unit_norm: bool) -> dict[str, object]:
    """The constructor arguments of ConvAutoencoder that the keys and shapes of `state` imply."""
    what = "LlamaGen VQ"
    vocab, dim = need(state, "quantize.embedding.weight", what).shape
    width = len(need(state, "encoder.conv_in.weight", what))
    base = len(need(state, "decoder.norm_out.weight", what))
    levels = [i for i in range(len(state)) if f"encoder.conv_blocks.{i}.res.0.conv1.weight" in state]
    widths = [len(state[f"encoder.conv_blocks.{i}.res.0.conv1.weight"]) for i in levels]
    arguments = {
        "bottleneck": {"kind": "vector_quantize", "dim": dim, "vocab": vocab, "unit_norm": unit_norm},
        "width": width,
        "multipliers": [channels // width for channels in widths],
        "blocks": sum(f"encoder.conv_blocks.0.res.{j}.conv1.weight" in state for j in range(len(state))),
        "attention": [i for i in levels if f"encoder.conv_blocks.{i}.attn.0.q.weight" in state],
        "z_channels": len(need(state, "post_quant_conv.weight", what)),
    }
    return arguments | ({"decoder_width": base} if base != width else {})


def names() -> dict[str, str]:
    """Regular expressions of LlamaGen's keys and what they become; its decoder counts levels from the lowest."""
    renames = {
        r"quantize\.embedding\.weight": "neck.codebook",
        r"((?:encoder|decoder)\.conv_(?:in|out)|(?:post_)?quant_conv)\.(.*)": r"\1.\2",
        r"(encoder|decoder)\.norm_out\.(.*)": r"\1.conv_norm_out.\2",
        r"encoder\.conv_blocks\.(\d+)\.downsample\.conv\.(.*)": r"encoder.down_blocks.\1.downsamplers.0.conv.\2",
        r"decoder\.conv_blocks\.(\d+)\.upsample\.conv\.(.*)": r"decoder.up_blocks.\1.upsamplers.0.conv.\2",
    }
    levels = {r"encoder\.conv_blocks": "encoder.down_blocks", r"decoder\.conv_blocks": "decoder.up_blocks"}
    for theirs, ours in BLOCK.items():
        for blocks, mine in levels.items():
            renames[rf"{blocks}\.(\d+)\.res\.(\d+)\.{theirs}\.(.*)"] = rf"{mine}.\1.resnets.\2.{ours}.\3"
        for place, j in ((0, 0), (2, 1)):
            renames[rf"(encoder|decoder)\.mid\.{place}\.{theirs}\.(.*)"] = rf"\1.mid_block.resnets.{j}.{ours}.\2"
    for theirs, ours in ATTENTION.items():
        for blocks, mine in levels.items():
            renames[rf"{blocks}\.(\d+)\.attn\.(\d+)\.{theirs}\.(.*)"] = rf"{mine}.\1.attentions.\2.{ours}.\3"
        renames[rf"(encoder|decoder)\.mid\.1\.{theirs}\.(.*)"] = rf"\1.mid_block.attentions.0.{ours}.\2"
    return renames
