"""LaVIT's dynamic tokenizer (jy0205/LaVIT, arXiv:2309.04669)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, heads_of, need, read, rename
from pipeline.published.seed import ENCODER, count
from pipeline.vision.backbone import CLIP

WHAT = "LaVIT's tokenizer (rain1011/LaVIT-7B-v2: tokenizer_encoder.bin, with decoder=FILE, its tokenizer_decoder.bin)"
WHOSE = "LaVIT"
HEADS = {1408: 16}  # by width, of the merger and of the decoder
OURS = ("encoder.", "pixel_decoder.", "mean", "std")  # what no state gives
DROPPED = (r"vit_proj\..*",)  # of the language model
NAMES = {
    r"token_predictor\.in_conv\.0\.(.*)": r"selector.norm.\1",
    r"token_predictor\.in_conv\.1\.(.*)": r"selector.embedding.\1",
    r"token_predictor\.out_conv\.0\.(.*)": r"selector.layers.0.\1",
    r"token_predictor\.out_conv\.2\.(.*)": r"selector.layers.1.\1",
    r"token_predictor\.out_conv\.4\.(.*)": r"selector.layers.2.\1",
    r"causal_encoder\.ln_vision\.(.*)": r"merger.norm_in.\1",
    r"causal_encoder\.norm\.(.*)": r"merger.norm_out.\1",
    r"encode_task_layer\.(.*)": r"to_code.\1",
    r"quantize\.embedding\.weight": "neck.codebook",
    r"in_proj\.(.*)": r"feature_decoder.embedding.\1",
    r"pos_embed": "feature_decoder.positions",
    r"query_embed": "feature_decoder.queries",
    r"norm\.(.*)": r"feature_decoder.norm.\1",
    r"decode_task_layer\.(.*)": r"feature_decoder.projection.\1",
    r"unet_proj\.(.*)": r"context.\1",
}
BLOCKS = {r"causal_encoder\.blocks": "merger.blocks", "blocks": "feature_decoder.blocks"}
IN_BLOCK = {
    r"norm0\.(.*)": r"norm1.\2",
    r"norm1\.(.*)": r"norm2.\2",
    r"norm2\.(.*)": r"norm3.\2",
    r"mlp\.fc1\.(.*)": r"up.\2",
    r"mlp\.fc2\.(.*)": r"down.\2",
    r"(?:token_causal|self)_attn\.(.*)": r"attention.\2",
    r"(?:token_)?cross_attn\.(.*)": r"reading.\2",
}
TABLES = ("feature_decoder.positions", "feature_decoder.queries")  # [1, N, width] there


def convert(
    state: Mapping[str, Tensor],
    decoder: str | None = None,
    start: str = "Salesforce/blip2-opt-2.7b",
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: int = 224,
) -> dict[str, object]:
    """{"tokenizer"} of the state of selector, merger and codebook, and of the decoder; ValueError for anything else.

    `decoder` is the file of the decoder's weights, where `state` lacks these. The image encoder is EVA-CLIP ViT-g, as
    `start` has it, a folder or hub id of BLIP-2, whose last hidden state before the model's last norm is read. Heads
    follow from the published width. The layer to the language model is left out. The decoder of pixels is ours: it is
    new, and is trained by a phase with train=pixel_decoder.
    """
    need(state, "token_predictor.in_conv.0.weight", WHOSE)
    state = dict(state) | ({} if decoder is None else read(decoder))
    if "in_proj.weight" not in state:
        raise ValueError("there is no decoder of features in these weights; name its file: decoder=FILE")
    known = len(state["token_predictor.in_conv.0.weight"]) == ENCODER["hidden_size"]
    encoder = {
        "kind": "vision_transformer",
        "start": start,
        "model": ENCODER if known else {},
        "image_patch": ENCODER["patch_size"],
        **dict(zip(("mean", "std"), map(list, CLIP), strict=True)),
    }
    node = {"kind": "lavit", "frozen_encoder": encoder, **shapes(state, heads, decoder_heads)}
    tokenizer = build_component("tokenizers", node, image_size=image_size)
    kept = {name: value for name, value in tokenizer.state_dict().items() if name.startswith(OURS)}
    return {"tokenizer": fill(tokenizer, weights(state) | kept)}


def shapes(state: Mapping[str, Tensor], heads: int | None, decoder_heads: int | None) -> dict[str, object]:
    """The constructor arguments of Lavit that the shapes of `state` imply."""
    vocab, dim = need(state, "quantize.embedding.weight", WHOSE).shape
    width, decoder_width = (len(need(state, f"{name}.weight", WHOSE)) for name in ("causal_encoder.norm", "norm"))
    return {
        "bottleneck": {"kind": "vector_quantize", "dim": dim, "vocab": vocab, "unit_norm": False},
        "unit_latents": True,
        "depth": count(state, r"causal_encoder\.blocks\.(\d+)\..*"),
        "heads": heads or heads_of(width, HEADS),
        "hidden": len(need(state, "causal_encoder.blocks.0.mlp.fc1.bias", WHOSE)),
        "decoder_width": decoder_width,
        "decoder_depth": count(state, r"blocks\.(\d+)\..*"),
        "decoder_heads": decoder_heads or heads_of(decoder_width, HEADS, "decoder_heads"),
        "decoder_hidden": len(need(state, "blocks.0.mlp.fc1.bias", WHOSE)),
        "context_width": len(need(state, "unet_proj.bias", WHOSE)),
        "pixel_patch": ENCODER["patch_size"],
    }


def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under the names here, with the merger's queries, keys and values apart."""
    names = dict(NAMES)
    for theirs, ours in BLOCKS.items():
        names |= {rf"{theirs}\.(\d+)\.{inner}": rf"{ours}.\1.{name}" for inner, name in IN_BLOCK.items()}
    renamed = rename(state, names, DROPPED)
    for key in [key for key in renamed if key.startswith("merger.") and ".attention.qkv." in key]:
        parts = zip(("query", "key", "value"), renamed.pop(key).chunk(3))
        renamed |= {key.replace("qkv", part): value for part, value in parts}
    return {name: value[0] if name in TABLES else value for name, value in renamed.items()}
