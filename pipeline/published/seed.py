"""SEED's tokenizer (AILab-CVC/SEED, arXiv:2307.08041 and 2310.01218)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, heads_of, need, rename
from pipeline.tokenizers.seed import Seed
from pipeline.vision.backbone import CLIP

WHAT = "SEED's tokenizer (AILab-CVC/seed-tokenizer-2: seed_quantizer.pt), without the diffusion model of its pictures"
HEADS = {768: 12}  # of the queries and of the branches, by width
ENCODER = {  # EVA-CLIP ViT-g of BLIP-2, which is not among the weights or is, below visual_encoder
    "model_type": "blip_2_vision_model",
    "hidden_size": 1408,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "intermediate_size": 6144,
    "patch_size": 14,
    "image_size": 224,
}
HALVES = {"Qformer": "query_former", "Reverse_Qformer": "image_branch.reader"}
BRANCHES = {"blocks": "semantic_branch.blocks", "blocks_image": "image_branch.branch.blocks"}
TABLES = {  # [1, N, width] there, [N, width] here
    "query_tokens": "query_former.queries",
    "reverse_tokens": "image_branch.reader.queries",
    "pos_embed": "semantic_branch.positions",
    "pos_embed_image": "image_branch.branch.positions",
}
DROPPED = (
    r"(Reverse_)?Qformer\.bert\.embeddings\.position_ids",  # numbers of places
    r".*\.num_batches_tracked",
)
EYES = "visual_encoder."
EYE_NAMES = {  # of LAVIS's EVA, and of transformers' Blip2VisionModel
    r"cls_token": "embeddings.class_embedding",
    r"pos_embed": "embeddings.position_embedding",
    r"patch_embed\.proj\.(.*)": r"embeddings.patch_embedding.\1",
    r"blocks\.(\d+)\.norm([12])\.(.*)": r"encoder.layers.\1.layer_norm\2.\3",
    r"blocks\.(\d+)\.attn\.qkv\.(.*)": r"encoder.layers.\1.self_attn.qkv.\2",
    r"blocks\.(\d+)\.attn\.proj\.(.*)": r"encoder.layers.\1.self_attn.projection.\2",
    r"blocks\.(\d+)\.mlp\.(.*)": r"encoder.layers.\1.mlp.\2",
}
WHOSE = "SEED"
CAUSAL = 32  # queries
OURS = ("encoder.", "pixel_decoder.", "mean", "std")  # what a state does not give


def convert(
    state: Mapping[str, Tensor],
    start: str = "Salesforce/blip2-opt-2.7b",
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: int = 224,
) -> dict[str, object]:
    """{"tokenizer"} of a SEED state with its image branch; ValueError for anything else.

    The image encoder is of the state where that has it, else of `start`, a folder or hub id whose last hidden state
    before the model's last norm is read. `decoder_heads` are of the branches' blocks, `heads` of the queries'; both
    follow from the published width. Queries are causal where there are 32, the only number for which the released code
    masks their attention. The decoder of pixels is ours: it is new, and is trained by a phase with
    train=pixel_decoder.
    """
    eyes = {key.removeprefix(EYES): value for key, value in state.items() if key.startswith(EYES)}
    state = {key: value for key, value in state.items() if not key.startswith(EYES)}
    known = len(need(state, "ln_vision.weight", WHOSE)) == ENCODER["hidden_size"]
    encoder = {
        "kind": "vision_transformer",
        "start": "random" if eyes else start,
        "model": eye_sizes(eyes) if eyes else ENCODER if known else {},
        "image_patch": ENCODER["patch_size"],
        **dict(zip(("mean", "std"), map(list, CLIP), strict=True)),
    }
    node = {"kind": "seed", "frozen_encoder": encoder, **shapes(state, heads, decoder_heads)}
    tokenizer = build_component("tokenizers", node, image_size=image_size)
    kept = {name: value for name, value in tokenizer.state_dict().items() if name.startswith(OURS)}
    if eyes:
        fill_eyes(tokenizer, eyes)
        kept |= {f"encoder.{name}": value for name, value in tokenizer.encoder.state_dict().items()}
    return {"tokenizer": fill(tokenizer, weights(state) | kept)}


def shapes(state: Mapping[str, Tensor], heads: int | None, decoder_heads: int | None) -> dict[str, object]:
    """The constructor arguments of Seed that the shapes of `state` imply."""
    vocab, dim = need(state, "quantize.embedding.weight", WHOSE).shape
    _, tokens, width = need(state, "query_tokens", WHOSE).shape
    return {
        "bottleneck": {"kind": "vector_quantize", "dim": dim, "vocab": vocab, "unit_norm": False},
        "tokens": tokens,
        "causal": tokens == CAUSAL,
        "width": width,
        "depth": count(state, r"Qformer\.bert\.encoder\.layer\.(\d+)\..*"),
        "heads": heads or heads_of(width, HEADS),
        "hidden": len(need(state, "Qformer.bert.encoder.layer.0.intermediate_query.dense.bias", WHOSE)),
        "branch_depth": count(state, r"blocks\.(\d+)\..*"),
        "branch_heads": decoder_heads or heads_of(width, HEADS, "decoder_heads"),
        "reader_depth": count(state, r"Reverse_Qformer\.bert\.encoder\.layer\.(\d+)\..*"),
        "embedding_width": len(need(state, "distill_image_proj.bias", WHOSE)),
        "pixel_patch": ENCODER["patch_size"],
    }


def count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that the pattern's group has in a key; ValueError where no key matches."""
    numbers = [int(match[1]) for key in state if (match := re.fullmatch(pattern, key))]
    if not numbers:
        raise ValueError(f"not a {WHOSE} checkpoint: no key is of the form {pattern}")
    return 1 + max(numbers)


def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under the names here."""
    renamed = rename(state, names(), DROPPED)
    return {name: value[0] if name in TABLES.values() else value for name, value in renamed.items()}


def names() -> dict[str, str]:
    """Regular expressions of SEED's keys and what they become."""
    renames = {rf"{theirs}": ours for theirs, ours in TABLES.items()} | {
        r"ln_vision\.(.*)": r"embedding.norm.\1",
        r"encode_task_layer\.(.*)": r"to_code.\1",
        r"decode_task_layer\.(.*)": r"from_code.\1",
        r"quantize\.embedding\.weight": "neck.codebook",
        r"distill_image_proj\.(.*)": r"image_branch.projection.\1",
    }
    for theirs, ours in HALVES.items():
        renames[rf"{theirs}\.bert\.embeddings\.LayerNorm\.(.*)"] = rf"{ours}.norm_in.\1"
        layer, block = rf"{theirs}\.bert\.encoder\.layer\.(\d+)\.", rf"{ours}.blocks.\1."
        for attention, mine in {"attention": "attention", "crossattention": "reading"}.items():
            renames[rf"{layer}{attention}\.self\.(query|key|value)\.(.*)"] = rf"{block}{mine}.\2.\3"
            renames[rf"{layer}{attention}\.output\.dense\.(.*)"] = rf"{block}{mine}.proj.\2"
            renames[rf"{layer}{attention}\.output\.LayerNorm\.(.*)"] = rf"{block}{mine}.norm.\2"
        renames[rf"{layer}intermediate_query\.dense\.(.*)"] = rf"{block}up.\2"
        renames[rf"{layer}output_query\.dense\.(.*)"] = rf"{block}down.\2"
        renames[rf"{layer}output_query\.LayerNorm\.(.*)"] = rf"{block}norm.\2"
    for theirs, ours in BRANCHES.items():
        renames[rf"{theirs}\.(\d+)\.(norm[12])\.(.*)"] = rf"{ours}.\1.\2.\3"
        renames[rf"{theirs}\.(\d+)\.attn\.(qkv|proj)\.(.*)"] = rf"{ours}.\1.attention.\2.\3"
        renames[rf"{theirs}\.(\d+)\.mlp\.fc1\.(.*)"] = rf"{ours}.\1.up.\2"
        renames[rf"{theirs}\.(\d+)\.mlp\.fc2\.(.*)"] = rf"{ours}.\1.down.\2"
    return renames


def eye_sizes(eyes: Mapping[str, Tensor]) -> dict[str, object]:
    """The config of the image encoder, as far as its shapes imply it."""
    width, _, patch, _ = need(eyes, "patch_embed.proj.weight", WHOSE).shape
    side = round((need(eyes, "pos_embed", WHOSE).shape[1] - 1) ** 0.5)
    return ENCODER | {
        "hidden_size": width,
        "num_hidden_layers": count(eyes, r"blocks\.(\d+)\..*"),
        "intermediate_size": len(need(eyes, "blocks.0.mlp.fc1.bias", WHOSE)),
        "patch_size": patch,
        "image_size": side * patch,
    }


def fill_eyes(tokenizer: Seed, eyes: Mapping[str, Tensor]) -> None:
    """Give the encoder its weights; its last norm is that of the tokenizer, so that the model's own is not used."""
    eyes = dict(eyes)
    for key in [key for key in eyes if key.endswith("attn.q_bias")]:
        block, query, value = key.removesuffix("q_bias"), eyes.pop(key), eyes.pop(key.replace("q_bias", "v_bias"))
        eyes[f"{block}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    model = tokenizer.encoder.model
    unused = {name: value for name, value in model.state_dict().items() if name.startswith("post_layernorm.")}
    fill(model, rename(eyes, EYE_NAMES) | unused)
    tokenizer.encoder.source = WHOSE
    tokenizer.keep_source()
