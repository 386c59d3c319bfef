"""OmniTokenizer checkpoints, with codes or a Gaussian posterior (FoundationVision/OmniTokenizer, arXiv:2406.09399)."""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, need, rename
from pipeline.ranges import Count

WHAT = "OmniTokenizer, codes or KL (Daniel0724/OmniTokenizer: imagenet_ucf.ckpt); clips=true keeps the layers of clips"
WHOSE = "OmniTokenizer"
SIZE = 256  # pixels of a side of images
STACKS = {
    f"{half}.{half[:3]}_{axis}_transformer": f"{ours}_{half}"
    for half in ("encoder", "decoder")
    for axis, ours in (("spatial", "frame"), ("temporal", "time"))
}
LAYERS = {
    r"layers\.(\d+)\.0\.dsconv\.weight": r"blocks.\1.positions.kernel",
    r"layers\.(\d+)\.0\.dsconv\.bias": r"blocks.\1.positions.bias",
    r"layers\.(\d+)\.1\.norm\.gamma": r"blocks.\1.attention.norm.weight",
    r"layers\.(\d+)\.1\.q_scale": r"blocks.\1.attention.query_scale",
    r"layers\.(\d+)\.1\.k_scale": r"blocks.\1.attention.key_scale",
    r"layers\.(\d+)\.1\.to_q\.weight": r"blocks.\1.attention.query.weight",
    r"layers\.(\d+)\.1\.to_kv\.weight": r"blocks.\1.attention.key_value.weight",
    r"layers\.(\d+)\.1\.to_out\.weight": r"blocks.\1.attention.proj.weight",
    r"layers\.(\d+)\.1\.qkv\.weight": r"blocks.\1.attention.qkv.weight",
    r"layers\.(\d+)\.1\.relative_position_bias_table": r"blocks.\1.attention.bias_table",
    r"layers\.(\d+)\.1\.proj\.(weight|bias)": r"blocks.\1.attention.proj.\2",
    r"layers\.(\d+)\.3\.0\.(weight|bias)": r"blocks.\1.feed_forward.norm.\2",
    r"layers\.(\d+)\.3\.1\.weight": r"blocks.\1.feed_forward.up.weight",
    r"layers\.(\d+)\.3\.4\.weight": r"blocks.\1.feed_forward.down.weight",
    r"norm_out\.gamma": r"norm_out.weight",
}
NAMES = {
    **{
        f"{re.escape(theirs)}\\.{layer}": f"{ours}.{name}"
        for theirs, ours in STACKS.items()
        for layer, name in LAYERS.items()
    },
    r"pre_vq_conv\.1\.(weight|bias)": r"projection.\1",
    r"post_vq_conv\.1\.(weight|bias)": r"embedding.\1",
    r"encoder\.to_patch_emb_first_frame\.([123])\.(weight|bias)": r"first_patches.\1.\2",
    r"decoder\.to_pixels_first_frame\.0\.(weight|bias)": r"first_pixels.\1",
}
CLIPS = {
    r"encoder\.to_patch_emb\.([123])\.(weight|bias)": r"later_patches.\1.\2",
    r"decoder\.to_pixels\.0\.(weight|bias)": r"later_pixels.\1",
}
CODES = {
    r"codebook\.embeddings": "neck.codebook",
    r"codebook\.N": "neck.counts",
    r"codebook\.z_avg": "neck.sums",
}
WITHOUT_EFFECT = (  # on what the released code computes, see its case in tests/golden
    r".*\.spatial_rel_pos_bias\..*",
    r".*\.context_norm\.gamma",
    r".*\.relative_position_index",
    r"codebook\.codebook_usage",
)
TRAINING = (r"(image_discriminator|video_discriminator|perceptual_model)\..*",)
ZERO = r".*\.beta"  # offsets of norms, which are never trained


def convert(
    state: Mapping[str, Tensor], image_size: Count = SIZE, unit_latents: bool = True, clips: bool = False
) -> dict[str, object]:
    """{"tokenizer"} of an OmniTokenizer state; the shapes tell codes from a Gaussian posterior, and all sizes.

    `unit_latents` says whether what is compared with the rows of a codebook has length one (`l2_code` there), which no
    weight tells. Without `clips` it is a tokenizer of images, and the layers of later frames stay behind. Raises
    ValueError for keys or shapes that are not OmniTokenizer's.
    """
    if offsets := [key for key, value in state.items() if re.fullmatch(ZERO, key) and value.any()]:
        raise ValueError(f"{offsets[0]} is not zero, which that of no released OmniTokenizer is")
    arguments = shapes(state, clips)
    coded = arguments["bottleneck"]["kind"] == "vector_quantize"
    arguments |= {"unit_latents": unit_latents and coded}
    names = NAMES | (CLIPS if clips else {}) | (CODES if coded else {})
    dropped = (*WITHOUT_EFFECT, *TRAINING, ZERO, *(() if clips else CLIPS), *(() if coded else CODES))
    renamed = shift_patches(rename(state, names, dropped))
    renamed = {key: value[:, 0] if key.endswith("positions.kernel") else value for key, value in renamed.items()}
    tokenizer = build_component("tokenizers", {"kind": "omni_tokenizer", **arguments}, image_size=image_size)
    rest = {name: value for name, value in tokenizer.state_dict().items() if name in ("mean", "std", "neck.placed")}
    if coded:
        rest["neck.started"] = tokenizer.neck.started.new_ones(())
    return {"tokenizer": fill(tokenizer, renamed | rest)}


def shift_patches(renamed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The readers of patches numbered from 0, where their first layer, which has no weights, is not one here."""
    number = re.compile(r"(first|later)_patches\.(\d)\.(.*)")
    return {
        f"{match[1]}_patches.{int(match[2]) - 1}.{match[3]}" if (match := number.fullmatch(key)) else key: value
        for key, value in renamed.items()
    }


def shapes(state: Mapping[str, Tensor], clips: bool) -> dict[str, object]:
    """The constructor arguments of OmniTokenizer that the keys and shapes of `state` imply."""
    width, pixels = need(state, "encoder.to_patch_emb_first_frame.2.weight", WHOSE).shape
    patch = math.isqrt(pixels // 3)
    first = need(state, "encoder.enc_temporal_transformer.layers.0.1.to_q.weight", WHOSE)
    head_width = len(need(state, "encoder.enc_temporal_transformer.layers.0.1.q_scale", WHOSE))
    tables = [value for key, value in state.items() if key.endswith("relative_position_bias_table")]
    biased = any(re.fullmatch(r".*_spatial_transformer\..*\.spatial_rel_pos_bias\..*", key) for key in state)
    later = need(state, "encoder.to_patch_emb.2.weight", WHOSE).shape[1]
    return {
        "bottleneck": bottleneck(state),
        "width": width,
        "heads": len(first) // head_width,
        "head_width": head_width,
        "reach": reaches(state, "encoder.enc_spatial_transformer"),
        "decoder_reach": reaches(state, "decoder.dec_spatial_transformer"),
        "temporal_depth": len(reaches(state, "encoder.enc_temporal_transformer")),
        "patch_size": patch,
        **({"window": (math.isqrt(len(tables[0])) + 1) // 2} if tables else {}),
        "position": "convolution" if biased else "rotary",
        "feed_forward_width": need(state, "encoder.enc_temporal_transformer.layers.0.3.4.weight", WHOSE).shape[1],
        "clip_patch": later // pixels if clips else 0,
    }


def bottleneck(state: Mapping[str, Tensor]) -> dict[str, object]:
    """A posterior where the encoder makes twice the channels that the decoder reads, else a codebook."""
    outputs, dim = len(need(state, "pre_vq_conv.1.weight", WHOSE)), need(state, "post_vq_conv.1.weight", WHOSE).shape[1]
    if outputs == 2 * dim:
        return {"kind": "gaussian", "dim": dim}
    vocab = len(need(state, "codebook.embeddings", WHOSE))
    return {"kind": "vector_quantize", "dim": dim, "vocab": vocab, "unit_norm": False, "learn": "ema"}


def reaches(state: Mapping[str, Tensor], stack: str) -> list[str]:
    """The reach of each block of a stack, told by its attention's keys."""
    pattern = re.compile(rf"{re.escape(stack)}\.layers\.(\d+)\.1\.(to_q|qkv)\.weight")
    found = sorted((int(match[1]), match[2]) for key in state if (match := pattern.fullmatch(key)))
    return ["frame" if name == "to_q" else "window" for _, name in found]
