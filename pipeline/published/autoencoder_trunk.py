"""What LDM-style autoencoders share: their keys under our names, and the arguments that their shapes tell."""

import re
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, need, read, rename
from pipeline.tokenizers.base import Tokenizer
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
TRAINING = (r"loss\..*", r"model_ema\..*")  # the objective's own parameters; averages under flattened names
IMAGE_SIZE = 256  # what these are trained at; no weight depends on it


Normalised = TypeVar("Normalised", bound=Tokenizer)


def convert_autoencoder(
    state: Mapping[str, Tensor], what: str, dropped: tuple[str, ...] = TRAINING, side: int | None = None
) -> ConvAutoencoder:
    """A ConvAutoencoder with the weights of `state`; keys that match one of `dropped` stay behind.

    It is for images of 256 pixels, or for those whose codes have `side` positions a side.

    Raises ValueError for keys or shapes that are not of an LDM autoencoder with a Gaussian posterior.
    """
    arguments = shapes(state, what)
    renamed = rename(state, names(len(arguments["multipliers"])), dropped)
    renamed = {key: flat(key, value) for key, value in renamed.items()}
    size = IMAGE_SIZE if side is None else side * 2 ** (len(arguments["multipliers"]) - 1)
    tokenizer = build_component("tokenizers", {"kind": "conv_autoencoder", **arguments}, image_size=size)
    return fill(tokenizer, renamed | {"mean": tokenizer.mean, "std": tokenizer.std})


def normalised(tokenizer: Normalised, mean: Tensor, std: Tensor) -> Normalised:
    """The tokenizer with the published mean and std of its codes, of C numbers each in whatever shape."""
    if mean.numel() != len(tokenizer.mean) or std.numel() != len(tokenizer.std):
        raise ValueError(f"the latent statistics are of {mean.numel()} channels, the codes have {len(tokenizer.mean)}")
    tokenizer.mean.copy_(mean.flatten()), tokenizer.std.copy_(std.flatten())
    return tokenizer


def read_statistics(path: str) -> tuple[Tensor, Tensor]:
    """Mean and std of a file of latent statistics: {mean, std} of VA-VAE, {latents_bias, latents_scale} of REPA-E."""
    tensors = read(path)
    if {"mean", "std"} <= set(tensors):
        return tensors["mean"], tensors["std"]
    return need(tensors, "latents_bias", "latent statistics"), 1 / need(tensors, "latents_scale", "latent statistics")


def shapes(state: Mapping[str, Tensor], what: str) -> dict[str, object]:
    """The constructor arguments of ConvAutoencoder that the keys and shapes of `state` imply."""
    levels = 1 + max((int(m[1]) for key in state if (m := re.match(r"encoder\.down\.(\d+)\.", key))), default=-1)
    widths = [len(need(state, f"encoder.down.{i}.block.0.conv1.weight", what)) for i in range(levels)]
    base = len(need(state, "encoder.conv_in.weight", what))
    decoder_base = len(need(state, "decoder.norm_out.weight", what)) * base // widths[0]
    inner, dim = need(state, "post_quant_conv.weight", what).shape[:2]
    if len(need(state, "quant_conv.weight", what)) != 2 * dim:
        raise ValueError(f"this {what} checkpoint has no Gaussian posterior; autoencoders with a codebook are not read")
    arguments = {
        "bottleneck": {"kind": "gaussian", "dim": dim},
        "width": base,
        "multipliers": [width // base for width in widths],
        "blocks": sum(f"encoder.down.0.block.{j}.conv1.weight" in state for j in range(len(state))),
        "attention": [i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in state],
        "middle_attention": "encoder.mid.attn_1.q.weight" in state,
    }
    if decoder_base != base:
        arguments["decoder_width"] = decoder_base
    return arguments | ({"z_channels": inner} if inner != dim else {})


def names(levels: int) -> dict[str, str]:
    """Regular expressions of LDM's keys and what they become; its decoder counts levels from full resolution."""
    renames = {r"((?:encoder|decoder)\.conv_(?:in|out)|(?:post_)?quant_conv)\.(.*)": r"\1.\2"}
    renames[r"(encoder|decoder)\.norm_out\.(.*)"] = r"\1.conv_norm_out.\2"
    renames[r"encoder\.down\.(\d+)\.downsample\.conv\.(.*)"] = r"encoder.down_blocks.\1.downsamplers.0.conv.\2"
    places = {r"encoder\.down\.(\d+)": r"encoder.down_blocks.\1"}
    for i in range(levels):
        ours = f"decoder.up_blocks.{levels - 1 - i}"
        places[rf"decoder\.up\.({i})"] = ours
        renames[rf"decoder\.up\.{i}\.upsample\.conv\.(.*)"] = rf"{ours}.upsamplers.0.conv.\1"
    for theirs, ours in BLOCK.items():
        for place, mine in places.items():
            renames[rf"{place}\.block\.(\d+)\.{theirs}\.(.*)"] = rf"{mine}.resnets.\2.{ours}.\3"
        for j in (1, 2):
            renames[rf"(encoder|decoder)\.mid\.block_{j}\.{theirs}\.(.*)"] = rf"\1.mid_block.resnets.{j - 1}.{ours}.\2"
    for theirs, ours in ATTENTION.items():
        for place, mine in places.items():
            renames[rf"{place}\.attn\.(\d+)\.{theirs}\.(.*)"] = rf"{mine}.attentions.\2.{ours}.\3"
        renames[rf"(encoder|decoder)\.mid\.attn_1\.{theirs}\.(.*)"] = rf"\1.mid_block.attentions.0.{ours}.\2"
    return renames


def flat(key: str, value: Tensor) -> Tensor:
    """The 1x1 convolutions of attention [C, C, 1, 1] as linear layers [C, C]."""
    return value[:, :, 0, 0] if ".attentions." in key and value.dim() == 4 else value
