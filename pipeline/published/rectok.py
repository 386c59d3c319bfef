"""RecTok's autoencoders (Shi-qingyu/RecTok, arXiv:2512.13421)."""

import math
from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, heads_of, need, rename

WHAT = "RecTok's autoencoder (QingyuShi/RecTok: the tokenizer's .pth)"
HEADS = {384: 6, 768: 12, 1024: 16}  # by width
MASK = r"decoder\.mask_token"
BLOCK = r"(encoder|decoder)\.transformer\.(\d+)\."
OURS = r"\1.transformer.blocks.\2."
NAMES = {
    r"encoder\.patch_embed\.0\.(weight|bias)": r"encoder.patch_embedding.\1",
    r"encoder\.latent_head\.(weight|bias)": r"encoder.projection.\1",
    r"decoder\.decoder_embed\.(weight|bias)": r"decoder.embedding.\1",
    MASK: "decoder.mask_token",
    r"decoder\.ffn\.\d\.(weight|bias)": r"decoder.head.patches.\1",
    r"decoder\.conv_out\.(weight|bias)": r"decoder.head.conv_out.\1",
    r"(encoder|decoder)\.positional_embedding": r"\1.transformer.positions",
    r"(encoder|decoder)\.ln_pre\.weight": r"\1.transformer.norm_in.weight",
    r"(encoder|decoder)\.ln_post\.weight": r"\1.transformer.norm_out.weight",
    BLOCK + r"norm([12])\.weight": OURS + r"norm\3.weight",
    BLOCK + r"attn\.(qkv|proj)\.(weight|bias)": OURS + r"attention.\3.\4",
    BLOCK + r"attn\.q_norm\.weight": OURS + r"attention.query_norm.weight",
    BLOCK + r"attn\.k_norm\.weight": OURS + r"attention.key_norm.weight",
    BLOCK + r"mlp\.w12\.(weight|bias)": OURS + r"feed_forward.up.\3",
    BLOCK + r"mlp\.w3\.(weight|bias)": OURS + r"feed_forward.down.\3",
}
DROPPED = (r"sem_decoders\..*", r"(?:sem_)?foundation_models?\..*", r"loss\..*")  # of training alone


def convert(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    decoder_heads: int | None = None,
    token_drop: list[float] | None = None,
) -> dict[str, object]:
    """{"tokenizer"} of a RecTok state, with or without a leading `model.`; ValueError for anything else.

    The heads follow from the widths of published sizes. `token_drop` are the least and the largest share of tokens that
    are left out where it is trained further, [-0.1, 0.4] as released. The decoders of features and the critic stay
    behind. Codes have no published statistics in this file: `encode_dataset` measures ours.
    """
    state = {key.removeprefix("model."): value for key, value in state.items()}
    drop = [-0.1, 0.4] if token_drop is None else token_drop
    arguments = shapes(state, heads, decoder_heads) | {"token_drop": drop}
    side = math.isqrt(need(state, "encoder.positional_embedding", "RecTok").shape[1])
    size = side * arguments["patch_size"]
    tokenizer = build_component("tokenizers", {"kind": "vit_autoencoder", **arguments}, image_size=size)
    needed = tokenizer.state_dict()
    unused = () if drop[1] > 0 else (MASK,)
    names = {pattern: ours for pattern, ours in NAMES.items() if pattern not in unused}
    renamed = rename(state, names, DROPPED + unused)
    renamed = {name: in_shape(value, needed.get(name)) for name, value in renamed.items()}
    return {"tokenizer": fill(tokenizer, renamed | {"mean": tokenizer.mean, "std": tokenizer.std})}


def shapes(state: Mapping[str, Tensor], heads: int | None, decoder_heads: int | None) -> dict[str, object]:
    """The constructor arguments of VitAutoencoder that the keys and shapes imply."""
    width, _, patch, _ = need(state, "encoder.patch_embed.0.weight", "RecTok").shape
    decoder_width, dim = need(state, "decoder.decoder_embed.weight", "RecTok").shape
    outputs = len(need(state, "encoder.latent_head.weight", "RecTok"))
    return {
        "bottleneck": {"kind": "gaussian" if outputs == 2 * dim else "identity", "dim": dim},
        "width": width,
        "depth": depth(state, "encoder"),
        "heads": heads or heads_of(width, HEADS),
        "feed_forward_width": need(state, "encoder.transformer.0.mlp.w3.weight", "RecTok").shape[1],
        "patch_size": patch,
        "decoder_width": decoder_width,
        "decoder_depth": depth(state, "decoder"),
        "decoder_heads": decoder_heads or heads_of(decoder_width, HEADS, "decoder_heads"),
        "decoder_feed_forward_width": need(state, "decoder.transformer.0.mlp.w3.weight", "RecTok").shape[1],
        "position": "unit_rotary_and_learned",
        "norm": "rms",
        "outer_norms": "both",
        "query_key_norm": "encoder.transformer.0.attn.q_norm.weight" in state,
        "head": "conv",
    }


def depth(state: Mapping[str, Tensor], half: str) -> int:
    return 1 + max((int(key.split(".")[2]) for key in state if key.startswith(f"{half}.transformer.")), default=-1)


def in_shape(value: Tensor, needed: Tensor | None) -> Tensor:
    """`value` without the sides of length 1 that `needed` does not have."""
    if needed is None:
        return value
    same = [side for side in value.shape if side != 1] == [side for side in needed.shape if side != 1]
    return value.reshape(needed.shape) if same else value
