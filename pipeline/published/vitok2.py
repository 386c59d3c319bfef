"""ViTok-v2's autoencoders (Na-VAE/vitok-release)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, need, read, rename

WHAT = "ViTok-v2's autoencoder (philippehansen/ViTok-v2-*: model.safetensors, or encoder and decoder apart)"
IMAGE_SIZE = 256  # about; no weight depends on it
BLOCK = r"(encoder|decoder)_blocks\.(\d+)\."
OURS = r"\1.transformer.blocks.\2."
NAMES = {
    r"patch_embed\.(weight|bias)": r"encoder.patch_embedding.\1",
    r"to_code\.(weight|bias)": r"encoder.projection.\1",
    r"decoder_embed\.(weight|bias)": r"decoder.embedding.\1",
    r"to_pixels\.(weight|bias)": r"decoder.head.patches.\1",
    BLOCK + r"norm1\.weight": OURS + "norm1.weight",
    BLOCK + r"attn\.qkv_proj\.weight": OURS + "attention.qkv.weight",
    BLOCK + r"attn\.out_proj\.weight": OURS + "attention.proj.weight",
    BLOCK + r"attn\.norm_q\.weight": OURS + "attention.query_norm.weight",
    BLOCK + r"attn\.norm_k\.weight": OURS + "attention.key_norm.weight",
    BLOCK + r"ffn\.fc1\.weight": OURS + "feed_forward.up.weight",
    BLOCK + r"ffn\.fc2\.weight": OURS + "feed_forward.down.weight",
    BLOCK + r"layer_scale\.gamma": OURS + "scale1",
}


def convert(state: Mapping[str, Tensor], decoder: str | None = None) -> dict[str, object]:
    """{"tokenizer"} of the state of a ViTok-v2 autoencoder for images, with `decoder` from a file of its own or not.

    Sliding windows, where a release has them, are left out: attention is over the whole image. Raises ValueError for
    keys or shapes that are not ViTok-v2's.
    """
    state = dict(state) | ({} if decoder is None else read(decoder))
    arguments = shapes(state)
    patch = arguments["patch_size"]
    image_size = patch * max(1, IMAGE_SIZE // patch)
    tokenizer = build_component("tokenizers", {"kind": "vit_autoencoder", **arguments}, image_size=image_size)
    renamed = {name: as_ours(name, value, patch) for name, value in rename(state, NAMES).items()}
    tables = {name: value for name, value in tokenizer.state_dict().items() if name in ("mean", "std")}
    return {"tokenizer": fill(tokenizer, renamed | tables)}


def shapes(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The constructor arguments of VitAutoencoder that the keys and shapes imply."""
    what = "ViTok-v2"
    pixels = need(state, "patch_embed.weight", what).shape[1]
    patch = math.isqrt(pixels // 3)
    if 3 * patch**2 != pixels:
        raise ValueError(f"{pixels} values a token are no square patch of three colours; video is not read")
    encoder, decoder = (half_shapes(state, half) for half in ("encoder", "decoder"))
    return {
        "bottleneck": {"kind": "layer_norm", "dim": len(need(state, "to_code.weight", what))},
        "patch_size": patch,
        **encoder,
        **{f"decoder_{name}": value for name, value in decoder.items()},
        "norm": "rms",
        "outer_norms": "none",
        "query_key_norm": True,
        "parallel": True,
        "layer_scale": 1e-4 if "encoder_blocks.0.layer_scale.gamma" in state else None,
        "bias": False,
    }


def half_shapes(state: Mapping[str, Tensor], half: str) -> dict[str, int]:
    """Sizes of the encoder's or the decoder's blocks."""
    width, hidden = need(state, f"{half}_blocks.0.ffn.fc2.weight", "ViTok-v2").shape
    return {
        "width": width,
        "depth": 1 + max(int(key.split(".")[1]) for key in state if key.startswith(f"{half}_blocks.")),
        "heads": width // len(need(state, f"{half}_blocks.0.attn.norm_q.weight", "ViTok-v2")),
        "feed_forward_width": hidden,
    }


def as_ours(name: str, value: Tensor, patch: int) -> Tensor:
    """A value as we have it: a patch's values are colour, row, column there, and the gate comes second."""
    if name == "encoder.patch_embedding.weight":
        return value.unflatten(1, (3, patch, patch))
    if name.startswith("decoder.head.patches."):
        return value.unflatten(0, (3, patch, patch)).movedim(0, 2).flatten(0, 2)  # row, column, colour
    return torch.cat(value.chunk(2)[::-1]) if name.endswith("feed_forward.up.weight") else value
