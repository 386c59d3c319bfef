"""TokenFlow's tokenizers on CLIP and on SigLIP (ByteFlow-AI/TokenFlow, arXiv:2412.03069)."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published import llamagen_vq
from pipeline.published.autoencoder_trunk import flat
from pipeline.published.checkpoint import fill, heads_of, need, rename
from pipeline.ranges import Count

WHAT = "TokenFlow's tokenizers (ByteFlow-AI/TokenFlow: tokenflow_clipb_32k_enhanced.pt, tokenflow_siglip_32k.pt)"
WHOSE = "TokenFlow"
SIDES = {  # by the last one
    14: [1, 2, 4, 6, 8, 10, 12, 14],
    27: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27],
}
ENCODER_HEADS = {768: 12, 1152: 16}  # of the vision model, by width
DECODER_HEADS = {768: 12, 1152: 12}  # of the semantic decoder
PATCH = 14  # of SigLIP
SIGLIP_SIZE = 384  # pixels of a side that 27 patches are cut of
CLIP_NAMES = {  # of CLIP's own implementation, and of transformers' CLIPVisionModel
    r"class_embedding": "embeddings.class_embedding",
    r"positional_embedding": "embeddings.position_embedding.weight",
    r"conv1\.weight": "embeddings.patch_embedding.weight",
    r"ln_pre\.(.*)": r"pre_layrnorm.\1",
    r"ln_post\.(.*)": r"post_layernorm.\1",
    r"transformer\.resblocks\.(\d+)\.ln_([12])\.(.*)": r"encoder.layers.\1.layer_norm\2.\3",
    r"transformer\.resblocks\.(\d+)\.attn\.([qkv])\.(.*)": r"encoder.layers.\1.self_attn.\2_proj.\3",
    r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.*)": r"encoder.layers.\1.self_attn.out_proj.\2",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.*)": r"encoder.layers.\1.mlp.fc1.\2",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.*)": r"encoder.layers.\1.mlp.fc2.\2",
}
SEMANTIC = {
    r"encode_task_layer\.(\d)\.(.*)": r"to_semantic.\1.\2",
    r"decode_task_layer\.(\d)\.(.*)": r"semantic_decoder.head.\1.\2",
    r"decoder_vqkd\.patch_embed\.proj\.(.*)": r"semantic_decoder.embedding.\1",
    r"decoder_vqkd\.cls_token": "semantic_decoder.class_token",
    r"decoder_vqkd\.pos_embed": "semantic_decoder.positions",
    r"decoder_vqkd\.fc_norm\.(.*)": r"semantic_decoder.norm.\1",
    r"decoder_vqkd\.blocks\.(\d+)\.norm([12])\.(.*)": r"semantic_decoder.blocks.\1.norm\2.\3",
    r"decoder_vqkd\.blocks\.(\d+)\.attn\.(qkv|proj)\.(.*)": r"semantic_decoder.blocks.\1.attention.\2.\3",
    r"decoder_vqkd\.blocks\.(\d+)\.mlp\.fc1\.(.*)": r"semantic_decoder.blocks.\1.up.\2",
    r"decoder_vqkd\.blocks\.(\d+)\.mlp\.fc2\.(.*)": r"semantic_decoder.blocks.\1.down.\2",
}
DROPPED = (r"quantize\.codebook_used", r"scaling_layer\..*")  # ids of the last batches; a fixed mean and std


def convert(
    state: Mapping[str, Tensor],
    sides: list[Count] | None = None,
    encoder_heads: Count | None = None,
    decoder_heads: Count | None = None,
) -> dict[str, object]:
    """{"tokenizer"} of a TokenFlow state whose semantic encoder was CLIP ViT-B/16 or SigLIP so400m/14.

    `sides` of the scales follow from the last one, `encoder_heads` of the vision model and `decoder_heads` of the
    semantic decoder from the published widths. ValueError for anything else, and for one on ViTamin, which
    transformers does not have.
    """
    of_siglip = any(key.startswith("encoder_vqkd.vision_model.") for key in state)
    if not of_siglip:
        need(state, "encoder_vqkd.class_embedding", f"{WHOSE} on CLIP or SigLIP")
    vision = siglip_weights(state) if of_siglip else clip_weights(state)
    encoder, size = siglip_encoder(vision, encoder_heads) if of_siglip else clip_encoder(vision, encoder_heads)
    arguments = shapes(state, sides, decoder_heads)
    side = arguments["bottleneck"]["sides"][-1]
    pixels = side * 2 ** (len(arguments["multipliers"]) - 1)
    arguments |= {"semantic_encoder": encoder} | ({} if pixels == size else {"pixel_size": pixels})
    tokenizer = build_component("tokenizers", {"kind": "tokenflow", **arguments}, image_size=size)
    tokenizer.encoder.source = WHOSE
    tokenizer.keep_source()
    kept = {
        name: value for name, value in tokenizer.state_dict().items() if name.startswith("neck.") or "." not in name
    }
    renamed = weights(state) | {f"encoder.model.{name}": value for name, value in vision.items()}
    return {"tokenizer": fill(tokenizer, kept | renamed)}


def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of the state but the vision model, under the names here."""
    rest = {key: value for key, value in state.items() if not key.startswith("encoder_vqkd.")}
    halves = [need(rest, f"quantize.embedding_{half}.weight", WHOSE) for half in ("vqkd", "vqgan")]
    rest = {key: value for key, value in rest.items() if not key.startswith("quantize.embedding_")}
    biases = {key: rest.pop(key) for key in list(rest) if re.fullmatch(r".*\.attn\.[qv]_bias", key)}
    trunk = {theirs: ours for theirs, ours in llamagen_vq.names().items() if "quantize" not in theirs}
    renamed = {name: flat(name, value) for name, value in rename(rest, SEMANTIC | trunk, DROPPED).items()}
    renamed = {re.sub(r"^encoder\.", "convolution.", name): value for name, value in renamed.items()}
    for name in ("class_token", "positions"):
        renamed[f"semantic_decoder.{name}"] = renamed[f"semantic_decoder.{name}"][0]
    renamed["semantic_decoder.embedding.weight"] = renamed["semantic_decoder.embedding.weight"][:, :, 0, 0]
    for key in [key for key in biases if key.endswith("q_bias")]:
        number, query, value = key.split(".")[2], biases[key], biases[key.replace("q_bias", "v_bias")]
        joined = torch.cat([query, torch.zeros_like(query), value])  # keys have none
        renamed[f"semantic_decoder.blocks.{number}.attention.qkv.bias"] = joined
    return renamed | {"neck.quantizer.codebook": torch.cat(halves, dim=1)}


def shapes(state: Mapping[str, Tensor], sides: list[int] | None, heads: int | None) -> dict[str, object]:
    """The constructor arguments of TokenFlow that the keys and shapes of `state` imply, but for the vision model."""
    vocab, semantic = need(state, "quantize.embedding_vqkd.weight", WHOSE).shape
    pixel = need(state, "quantize.embedding_vqgan.weight", WHOSE).shape[1]
    trunk = llamagen_vq.shapes(dict(state) | {"quantize.embedding.weight": torch.empty(vocab, pixel)}, True)
    side = math.isqrt(need(state, "decoder_vqkd.pos_embed", WHOSE).shape[1] - 1)
    width = need(state, "decoder_vqkd.fc_norm.weight", WHOSE).shape[0]
    quantizer = {"kind": "shared_index", "semantic_dim": semantic, "pixel_dim": pixel, "vocab": vocab}
    bottleneck = {"kind": "scale_by_scale", "sides": scales_of(side, sides), "bottleneck": quantizer}
    blocks = sum(f"decoder.conv_blocks.0.res.{j}.conv1.weight" in state for j in range(len(state))) - 1
    names = ("width", "multipliers", "blocks", "attention", "z_channels", "decoder_width")
    arguments = {name: trunk[name] for name in names if name in trunk}
    return arguments | {
        "bottleneck": bottleneck,
        "semantic_outputs": len(need(state, "decode_task_layer.2.weight", WHOSE)),
        "semantic_width": width,
        "semantic_depth": 1 + max(int(m[1]) for key in state if (m := re.match(r"decoder_vqkd\.blocks\.(\d+)\.", key))),
        "semantic_heads": heads or heads_of(width, DECODER_HEADS, "decoder_heads"),
        **({} if blocks == trunk["blocks"] else {"decoder_blocks": blocks}),
    }


def scales_of(side: int, sides: list[int] | None) -> list[int]:
    """The sides of the scales that end in `side`; ValueError for others, and where they are not known."""
    if sides is None and side not in SIDES:
        raise ValueError(f"the scales of {side} positions a side cannot be told from the weights; state sides=")
    if sides is not None and sides[-1] != side:
        raise ValueError(f"the scales end in {sides[-1]}, but the semantic decoder has {side} positions a side")
    return list(sides or SIDES[side])


def clip_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image half of CLIP under transformers' names."""
    prefix, parts = "encoder_vqkd.", {}
    for key, value in state.items():
        if ".attn.in_proj_" in key and key.startswith(prefix):
            parts |= {key.replace("in_proj_", f"{name}."): part for name, part in zip("qkv", value.chunk(3))}
        elif key.startswith(prefix):
            parts[key] = value
    return rename({key.removeprefix(prefix): value for key, value in parts.items()}, CLIP_NAMES)


def clip_encoder(vision: Mapping[str, Tensor], heads: int | None) -> tuple[dict[str, object], int]:
    """The node of the semantic encoder, and the side of its images; these are not normalised by CLIP's colours."""
    patch, places = vision["embeddings.patch_embedding.weight"].shape[-1], "embeddings.position_embedding.weight"
    size = math.isqrt(len(vision[places]) - 1) * patch
    return encoder_node("clip_vision_model", vision, patch, size, heads) | {"image_patch": patch}, size


def siglip_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image half of SigLIP, which has transformers' names."""
    prefix = "encoder_vqkd.vision_model."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def siglip_encoder(vision: Mapping[str, Tensor], heads: int | None) -> tuple[dict[str, object], int]:
    """As `clip_encoder`; the output of the last block but one is read, of as many whole patches as there are."""
    patch, places = (
        need(vision, "embeddings.patch_embedding.weight", WHOSE).shape[-1],
        "embeddings.position_embedding.weight",
    )
    side = math.isqrt(len(need(vision, places, WHOSE)))
    size = SIGLIP_SIZE if side == SIGLIP_SIZE // patch else side * patch
    return encoder_node("siglip_vision_model", vision, patch, size, heads) | {
        "image_patch": patch,
        "taps": [-2],
        "rest": "cut",
    }, size


def encoder_node(
    kind: str, vision: Mapping[str, Tensor], patch: int, size: int, heads: int | None
) -> dict[str, object]:
    """What both have in common: the sizes of the model, and colours that stay in [-1, 1]."""
    width, hidden = vision["post_layernorm.weight"].shape[0], vision["encoder.layers.0.mlp.fc1.bias"].shape[0]
    layers = {int(match[1]) for key in vision if (match := re.match(r"encoder\.layers\.(\d+)\.", key))}
    model = {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads or heads_of(width, ENCODER_HEADS, "encoder_heads"),
        "patch_size": patch,
        "image_size": size,
    }
    colours = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    return {"kind": "vision_transformer", "start": "random", "model": model, "norm": "own", **colours}
