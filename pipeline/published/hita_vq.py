"""Hita's tokenizers, vanilla and ultra (CVMI-Lab/Hita, arXiv:2507.02358)."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published import llamagen_vq
from pipeline.published.autoencoder_trunk import flat
from pipeline.published.checkpoint import fill, heads_of, need, rename
from pipeline.ranges import Count, Whole

WHAT = "Hita's tokenizers (yexiguafu/hita-gen: vanilla/tokenizer/hita-tok.pt, ultra/tokenizer/hita-ultra.pt)"
WHOSE = "Hita tokenizer"
ENCODERS = {  # by width: what a recipe says of the vision model, which is read from elsewhere
    1024: {
        "model_type": "dinov2_with_registers",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 518,
    }
}
HEADS = {512: 8}
LAYERS = r"(encode_transformer\.transformer1|encode_transformer\.transformer2|decode_transformer\.transformer)"
QUERY = re.compile(LAYERS + r"\.layers\.\d+\.attn1\.(to_q|q_proj)\.(weight|bias)")
MIXERS = {
    r"encode_transformer\.transformer1": "holistic.fusion",
    r"encode_transformer\.transformer2": "holistic.order",
    r"decode_transformer\.transformer": "reader.mixer",
}
OF_LAYER = {
    r"attn1\.qkv\.(weight|bias)": r"attention.qkv.\2",
    r"attn1\.(?:to_out\.0|out_proj)\.(weight|bias)": r"attention.proj.\2",
    r"ffnet\.w12\.(weight|bias)": r"feed_forward.up.\2",
    r"ffnet\.w3\.(weight|bias)": r"feed_forward.down.\2",
    r"norm([12])\.(weight|bias)": r"norm\2.\3",
}
NAMES = {
    r"encode_transformer\.proj\.mlp\.(\d+)\.(weight|bias)": r"holistic.projection.\1.\2",
    r"encode_transformer\.carrier_tokens": "holistic.carriers",
    r"encode_transformer\.pos_embed": "holistic.positions",
    r"encode_transformer\.norm_pre([12])\.(weight|bias)": r"holistic.norm\1.\2",
    r"decode_transformer\.slot_position_embedding": "reader.holistic_positions",
    r"decode_transformer\.position_embedding": "reader.positions",
    r"decode_transformer\.norm\.(weight|bias)": r"reader.norm.\1",
    r"decode_transformer\.mask_embedding": "reader.mask_token",
    r"decode_transformer\.norm_vfm\.(weight|bias)": r"reader.foundation_norm.\1",
    r"decode_transformer\.proj\.(weight|bias)": r"reader.projection.\1",
    r"pre_slots_quant\.(weight|bias)": r"exits.0.\1",
    r"post_slots_quant\.(weight|bias)": r"entries.0.\1",
    r"quant_conv\.(weight|bias)": r"exits.1.\1",
    r"post_quant_conv\.(weight|bias)": r"entries.1.\1",
    r"slot_quantize\.embedding\.weight": "neck.parts.0.codebook",
    r"quantize\.embedding\.weight": "neck.parts.1.codebook",
} | {
    rf"{theirs}\.layers\.(\d+)\.{inner}": rf"{ours}.blocks.\1.{name}"
    for theirs, ours in MIXERS.items()
    for inner, name in OF_LAYER.items()
}
DROPPED = (r".*\bbackbone\..*", r"(?:slot_)?quantize\.codebook_used")  # the frozen model; ids of the last batches
OF_REBUILDING = (r"decode_transformer\.mask_embedding", r"decode_transformer\.norm_vfm\..*")  # without a last layer


def convert(
    state: Mapping[str, Tensor],
    start: str = "facebook/dinov2-with-registers-large",
    heads: Count | None = None,
    shift: Whole = 4,
    unit_norm: bool = True,
    encoder_grid: Count = 16,
) -> dict[str, object]:
    """{"tokenizer"} of a Hita state, on the frozen vision model of `start`, a folder or hub id.

    No weight tells the shift of the causal decoder, 4 in both released ones, nor how many patches a side the frozen
    model reads of an image, 16 there, nor the heads of another width than the released one. ValueError for keys or
    shapes that are not Hita's.
    """
    arguments = shapes(state, unit_norm) | {"shift": shift}
    arguments["heads"] = heads or heads_of(arguments["width"], HEADS)
    inner = len(need(state, "encode_transformer.transformer1.layers.0.attn1.to_q.weight", WHOSE))
    if inner != arguments["width"]:
        arguments["fusion_head_width"] = inner // arguments["heads"]
    side = math.isqrt(need(state, "encode_transformer.pos_embed", WHOSE).shape[1])
    size = side * 2 ** (len(arguments["multipliers"]) - 1)
    width = need(state, "encode_transformer.proj.mlp.0.weight", WHOSE).shape[1]
    model = {"model": ENCODERS[width]} if width in ENCODERS else {}
    encoder = {"kind": "vision_transformer", "start": start, "image_patch": size // encoder_grid, **model}
    arguments["frozen_encoder"] = encoder | {"norm": "own", "resize": "bicubic"}
    tokenizer = build_component("tokenizers", {"kind": "hita", **arguments}, image_size=size)
    kept = {n: v for n, v in tokenizer.state_dict().items() if n.startswith("encoder.") or n in ("mean", "std")}
    return {"tokenizer": fill(tokenizer, weights(state) | kept)}


def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of the state but the frozen model, under the names here."""
    joined = join_projections(state)
    trunk = {theirs: ours for theirs, ours in llamagen_vq.names().items() if "quant" not in theirs}
    trunk |= {r"((?:encoder|decoder)\.conv_(?:in|out))\.(.*)": r"\1.\2"}
    unused = () if "decode_transformer.proj.weight" in state else OF_REBUILDING
    joined = {key: value for key, value in joined.items() if not any(re.fullmatch(name, key) for name in unused)}
    renamed = {name: flat(name, value) for name, value in rename(joined, NAMES | trunk, DROPPED).items()}
    return {re.sub(r"^encoder\.", "convolution.", name): vectors(name, value) for name, value in renamed.items()}


def join_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with the queries, keys and values of every layer as one matrix."""
    joined = {}
    for key, value in state.items():
        if match := QUERY.fullmatch(key):
            parts = [need(state, key.replace(match[2], match[2].replace("q", part)), WHOSE) for part in "kv"]
            joined[key.replace(match[2], "qkv")] = torch.cat([value, *parts])
        elif not re.fullmatch(LAYERS + r"\.layers\.\d+\.attn1\.(to_[kv]|[kv]_proj)\..*", key):
            joined[key] = value
    return joined


def vectors(name: str, value: Tensor) -> Tensor:
    """Learned vectors [1, N, C] as [N, C], and the 1x1 convolutions beside the bottleneck as linear layers."""
    if name.endswith(("carriers", "positions", "mask_token")):
        return value[0]
    return value[:, :, 0, 0] if name.startswith(("exits.", "entries.")) and value.ndim == 4 else value


def shapes(state: Mapping[str, Tensor], unit_norm: bool) -> dict[str, object]:
    """The constructor arguments of Hita that the keys and shapes of `state` imply, but for heads and images."""
    trunk = llamagen_vq.shapes(state, unit_norm)
    base, levels = trunk["width"], len(trunk["multipliers"])
    ups = [
        len(need(state, f"decoder.conv_blocks.{i}.res.0.conv2.weight", WHOSE)) // base for i in reversed(range(levels))
    ]
    vocab, dim = need(state, "slot_quantize.embedding.weight", WHOSE).shape
    first = trunk["bottleneck"] | {"vocab": vocab, "dim": dim}
    tokens, width = need(state, "encode_transformer.carrier_tokens", WHOSE).shape[1:]
    layers = [key for key in state if re.fullmatch(r"encode_transformer\.transformer1\.layers\.\d+\.norm1\.bias", key)]
    return {
        "bottleneck": {"kind": "two_segments", "first": first, "second": trunk["bottleneck"], "first_tokens": tokens},
        "width": width,
        "depth": len(layers),
        "hidden": need(state, "encode_transformer.transformer1.layers.0.ffnet.w3.weight", WHOSE).shape[1],
        "rebuild_features": "decode_transformer.proj.weight" in state,
        "conv_width": base,
        "multipliers": trunk["multipliers"],
        "decoder_multipliers": None if ups == trunk["multipliers"] else ups,
        "blocks": trunk["blocks"],
        "attention": trunk["attention"],
    }
