"""VAR's multi-scale tokenizer (FoundationVision/VAR, arXiv:2404.02905)."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.autoencoder_trunk import flat, names
from pipeline.published.checkpoint import fill, need, rename
from pipeline.ranges import Count, Fraction
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

WHAT = "VAR's multi-scale tokenizer (FoundationVision/var: vae_ch160v4096z32.pth)"
SIDES = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]  # of images of 256 pixels
PHI = r"quantize\.quant_resi\.(?:(?:qresi_ls\.)?(\d+)|qresi)\.(weight|bias)"
TRAINING = (r"quantize\.ema_vocab_hit_SV",)  # how often each row was taken


def convert(
    state: Mapping[str, Tensor],
    sides: list[Count] = SIDES,
    phi_share: Fraction = 0.5,
    by_angle: bool = False,
) -> dict[str, object]:
    """{"tokenizer"} of a state of VAR's VQVAE; ValueError for anything else.

    No weight tells the sides of the maps, those of images of 256 pixels by default, the share of the convolution in phi
    (`quant_resi` there), and whether codes are found by angle (`using_znorm`); all released ones have the defaults.
    """
    return {"tokenizer": convert_tokenizer(state, sides, phi_share, by_angle)}


def convert_tokenizer(
    state: Mapping[str, Tensor], sides: list[int], phi_share: float = 0.5, by_angle: bool = False
) -> ConvAutoencoder:
    """As `convert`, the tokenizer itself."""
    state = split_attention(state)
    phis = gather_phis(state)
    arguments = shapes(state, {"sides": list(sides), "phis": len(phis["offsets"]), "phi_share": abs(phi_share)})
    arguments["bottleneck"]["bottleneck"] |= {"by_angle": by_angle}
    levels = len(arguments["multipliers"])
    renamed = rename(
        state, names(levels) | {r"quantize\.embedding\.weight": "neck.quantizer.codebook"}, (*TRAINING, PHI)
    )
    renamed = {key: flat(key, value) for key, value in renamed.items()} | {f"neck.{n}": v for n, v in phis.items()}
    size = sides[-1] * 2 ** (levels - 1)
    tokenizer = build_component("tokenizers", {"kind": "conv_autoencoder", **arguments}, image_size=size)
    return fill(tokenizer, renamed | {"mean": tokenizer.mean, "std": tokenizer.std})


def split_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with queries, keys and values of the maps' attention in tensors of their own."""
    parts = dict(state)
    for key in [key for key in state if ".qkv." in key]:
        for name, part in zip("qkv", parts.pop(key).chunk(3)):
            parts[key.replace(".qkv.", f".{name}.")] = part
    return parts


def gather_phis(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The convolutions of phi, `kernels` [P * C, C, 3, 3] and `offsets` [P, C]; none where there is none."""
    matches = [match for key in state if (match := re.fullmatch(PHI, key))]
    if not matches:
        dim = need(state, "quantize.embedding.weight", "VAR tokenizer").shape[1]
        return {"kernels": torch.zeros(0, dim, 3, 3), "offsets": torch.zeros(0, dim)}
    tables = {}
    for name, ours in (("weight", "kernels"), ("bias", "offsets")):
        own = sorted((match for match in matches if match[2] == name), key=lambda match: int(match[1] or 0))
        tables[ours] = torch.stack([state[match[0]] for match in own])
    return tables | {"kernels": tables["kernels"].flatten(0, 1)}


def shapes(state: Mapping[str, Tensor], levels_of_map: dict[str, object]) -> dict[str, object]:
    """The constructor arguments of ConvAutoencoder that the keys and shapes of `state` imply."""
    what = "VAR tokenizer"
    vocab, dim = need(state, "quantize.embedding.weight", what).shape
    base = len(need(state, "encoder.conv_in.weight", what))
    levels = 1 + max((int(m[1]) for key in state if (m := re.match(r"encoder\.down\.(\d+)\.", key))), default=-1)
    widths = [len(need(state, f"encoder.down.{i}.block.0.conv1.weight", what)) for i in range(levels)]
    quantizer = {"kind": "vector_quantize", "dim": dim, "vocab": vocab, "unit_norm": False}
    return {
        "bottleneck": {"kind": "multi_scale", "bottleneck": quantizer, **levels_of_map},
        "width": base,
        "multipliers": [width // base for width in widths],
        "blocks": sum(f"encoder.down.0.block.{j}.conv1.weight" in state for j in range(len(state))),
        "attention": [i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in state],
        "middle_attention": "encoder.mid.attn_1.q.weight" in state,
        "quant_kernel": need(state, "quant_conv.weight", what).shape[-1],
    }
