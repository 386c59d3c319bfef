"""RobusTok's tokenizers (qiuk2/RobusTok and lxa9867/ImageFolder, arXiv:2503.08354 and arXiv:2509.12474)."""

import math
from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, heads_of, need, rename

WHAT = "RobusTok's tokenizer of two DINOv2 transformers (qiuk6/RobusTok: main-train.pt, post-train.pt)"
HEADS = {384: 6, 768: 12, 1024: 16}  # of DINOv2 by its width
NAMES = {
    r"(encoder|decoder)\.model\.cls_token": r"\1.vit.class_token",
    r"(encoder|decoder)\.model\.pos_embed": r"\1.vit.positions",
    r"(encoder|decoder)\.model\.norm\.(weight|bias)": r"\1.vit.norm.\2",
    r"encoder\.model\.patch_embed\.proj\.(weight|bias)": r"encoder.vit.patch_embedding.\1",
    r"(encoder|decoder)\.model\.blocks\.(\d+)\.norm([12])\.(weight|bias)": r"\1.vit.blocks.\2.norm\3.\4",
    r"(encoder|decoder)\.model\.blocks\.(\d+)\.attn\.(qkv|proj)\.(weight|bias)": r"\1.vit.blocks.\2.attention.\3.\4",
    r"(encoder|decoder)\.model\.blocks\.(\d+)\.ls([12])\.gamma": r"\1.vit.blocks.\2.scale\3",
    r"(encoder|decoder)\.model\.blocks\.(\d+)\.mlp\.fc1\.(weight|bias)": r"\1.vit.blocks.\2.up.\3",
    r"(encoder|decoder)\.model\.blocks\.(\d+)\.mlp\.fc2\.(weight|bias)": r"\1.vit.blocks.\2.down.\3",
    r"(encoder|decoder)\.latent_pos_embed": r"\1.positions",
    r"(encoder|decoder)\.lvl_embed\.weight": r"\1.levels",
    r"encoder\.latent_tokens": "encoder.latents",
    r"decoder\.mask_token": "decoder.mask_token",
    r"decoder\.to_pixel\.model\.(weight|bias)": r"decoder.pixels.\1",
    r"quant_conv\.(weight|bias)": r"encoder.projection.\1",
    r"post_quant_conv\.(weight|bias)": r"decoder.embedding.\1",
    r"quantize\.embedding\.weight": "neck.codebook",
}
DROPPED = (
    r"semantic_model\..*",  # the frozen teacher
    r"(encoder|decoder)\.lvl1LC",  # a fixed table of which token is on which level
    r"quantize\.ema_vocab_hit_SV",  # running counts of how often a row is used
    r"decoder\.model\.patch_embed\.proj\.(weight|bias)",  # of a decoder that reads no image
)


def convert(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    decoder_heads: int | None = None,
    unit_norm: bool = True,
    drop_path: float = 0.1,
) -> dict[str, object]:
    """{"tokenizer"} of a RobusTok state with one codebook; ValueError for anything else.

    Latents lie on the grid of the patches (`abs_pos_embed` there, as released) or in a row of their own, which the keys
    tell. `heads` and `decoder_heads` follow from the widths of published sizes. `unit_norm` is `codebook_l2_norm`
    there; `drop_path` matters where the tokenizer is trained further. The frozen teacher stays behind.
    """
    arguments = shapes(state, heads, decoder_heads)
    arguments["bottleneck"]["unit_norm"] = unit_norm
    side = math.isqrt(need(state, "encoder.model.pos_embed", "RobusTok").shape[1] - 1)
    tokenizer = build_component(
        "tokenizers",
        {"kind": "latent_vit", **arguments, "drop_path": drop_path},
        image_size=side * arguments["patch_size"],
    )
    needed = tokenizer.state_dict()
    renamed = {
        name: without_single_sides(value, needed[name]) if name in needed else value
        for name, value in rename(state, NAMES, DROPPED).items()
    }
    return {"tokenizer": fill(tokenizer, renamed | {"mean": tokenizer.mean, "std": tokenizer.std})}


def shapes(state: Mapping[str, Tensor], heads: int | None, decoder_heads: int | None) -> dict[str, object]:
    """The constructor arguments of LatentViT that the keys and shapes of `state` imply."""
    what = "RobusTok"
    vocab, dim = need(state, "quantize.embedding.weight", what).shape
    width, _, patch, _ = need(state, "encoder.model.patch_embed.proj.weight", what).shape
    decoder_width = need(state, "decoder.model.cls_token", what).shape[-1]
    row = "encoder.latent_pos_embed" in state
    return {
        "bottleneck": {"kind": "vector_quantize", "dim": dim, "vocab": vocab},
        "width": width,
        "depth": depth(state, "encoder"),
        "heads": heads or heads_of(width, HEADS),
        "patch_size": patch,
        "tokens": need(state, "encoder.latent_tokens", what).shape[1] if row else None,
        "decoder_width": decoder_width,
        "decoder_depth": depth(state, "decoder"),
        "decoder_heads": decoder_heads or heads_of(decoder_width, HEADS, "decoder_heads"),
    }


def depth(state: Mapping[str, Tensor], half: str) -> int:
    need(state, f"{half}.model.blocks.0.norm1.weight", "RobusTok")
    return 1 + max(int(key.split(".")[3]) for key in state if key.startswith(f"{half}.model.blocks."))


def without_single_sides(value: Tensor, needed: Tensor) -> Tensor:
    """A 1x1 kernel as a matrix, a table of one image as a table: `value` in the shape of `needed` where only sides of
    length 1 differ."""
    same = [side for side in value.shape if side != 1] == [side for side in needed.shape if side != 1]
    return value.reshape(needed.shape) if same else value
