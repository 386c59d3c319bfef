"""Decoders of RAE (bytetriper/RAE, arXiv:2510.11690)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, heads_of, need, read, rename
from pipeline.vision.backbone import IMAGENET

WHAT = "RAE's decoder of DINOv2 features (nyu-visionx/RAE-collections: decoders/dinov2/.../model.pt)"
HEADS = {512: 16, 768: 12, 1024: 16, 1152: 16}  # by the decoder's width
LAYERS = {384: 12, 768: 12, 1024: 24}  # of DINOv2 by its width
EPSILON = 1e-5  # of the published variance
NAMES = {
    r"decoder_embed\.(weight|bias)": r"embedding.\1",
    r"decoder_norm\.(weight|bias)": r"norm.\1",
    r"decoder_pred\.(weight|bias)": r"pixels.\1",
    r"trainable_cls_token": "class_token",
    r"decoder_layers\.(\d+)\.layernorm_before\.(weight|bias)": r"blocks.\1.norm1.\2",
    r"decoder_layers\.(\d+)\.layernorm_after\.(weight|bias)": r"blocks.\1.norm2.\2",
    r"decoder_layers\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)": r"blocks.\1.\2.\3",
    r"decoder_layers\.(\d+)\.attention\.output\.dense\.(weight|bias)": r"blocks.\1.attention.proj.\2",
    r"decoder_layers\.(\d+)\.intermediate\.dense\.(weight|bias)": r"blocks.\1.up.\2",
    r"decoder_layers\.(\d+)\.output\.dense\.(weight|bias)": r"blocks.\1.down.\2",
}
FIXED = (r"decoder_pos_embed",)


def convert(
    state: Mapping[str, Tensor],
    start: str = "facebook/dinov2-with-registers-base",
    stats: str | None = None,
    heads: int | None = None,
) -> dict[str, object]:
    """{"tokenizer"} of the state of an RAE decoder and its frozen encoder, a DINOv2 with registers.

    The file holds the decoder alone: `start` is the folder or hub id of the encoder, `stats` the published stat.pt with
    the latents' mean and variance [C, h, w], without which `encode_dataset` measures ours. `heads` follows from the
    width of published sizes. ImageNet's mean and std are undone in the decoder's last layer. Raises ValueError for
    keys or shapes that are not RAE's.
    """
    width, dim = need(state, "decoder_embed.weight", "RAE").shape
    places = need(state, "decoder_pos_embed", "RAE").shape[1] - 1
    patch = math.isqrt(len(need(state, "decoder_pred.bias", "RAE")) // 3)
    depth = 1 + max((int(key.split(".")[1]) for key in state if key.startswith("decoder_layers.")), default=-1)
    hidden = len(need(state, "decoder_layers.0.intermediate.dense.bias", "RAE"))
    decoder = {"kind": "vit", "width": width, "depth": depth, "heads": heads or heads_of(width, HEADS)}
    tokenizer = build_component(
        "tokenizers",
        {
            "kind": "representation",
            "frozen_encoder": encoder_of(dim, start, patch),
            "pixel_decoder": decoder | {"hidden": hidden},
            "statistics": "element",
        },
        image_size=patch * math.isqrt(places),
    )
    fill(tokenizer.decoder, decoder_state(state, depth, patch))
    if stats is not None:
        known = read(stats)
        mean, variance = (need(known, name, "RAE statistics").flatten(1).T for name in ("mean", "var"))
        if mean.shape != tokenizer.mean.shape:
            raise ValueError(f"{stats} is of {list(mean.shape)} values, the code of {list(tokenizer.mean.shape)}")
        tokenizer.mean.copy_(mean), tokenizer.std.copy_((variance + EPSILON).sqrt())
    return {"tokenizer": tokenizer.eval()}


def encoder_of(dim: int, start: str, patch: int) -> dict[str, object]:
    model = {"model_type": "dinov2_with_registers", "hidden_size": dim, "patch_size": 14}
    if dim in LAYERS:
        model |= {"num_hidden_layers": LAYERS[dim]}
    return {"kind": "vision_transformer", "start": start, "model": model, "image_patch": patch}


def decoder_state(state: Mapping[str, Tensor], depth: int, patch: int) -> dict[str, Tensor]:
    """Under our names, with queries, keys and values in one, and pixels in [-1, 1]."""
    renamed = rename(state, NAMES, FIXED)
    renamed["class_token"] = need(renamed, "class_token", "RAE")[0]
    for i in range(depth):
        for kind in ("weight", "bias"):
            parts = [need(renamed, f"blocks.{i}.{part}.{kind}", "RAE") for part in ("query", "key", "value")]
            renamed[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
            for part in ("query", "key", "value"):
                del renamed[f"blocks.{i}.{part}.{kind}"]
    mean, std = (torch.tensor(colours).repeat(patch**2) for colours in IMAGENET)  # a row a pixel and colour
    renamed["pixels.weight"] = 2 * std[:, None] * renamed["pixels.weight"].float()
    renamed["pixels.bias"] = 2 * (std * renamed["pixels.bias"].float() + mean) - 1
    return renamed
