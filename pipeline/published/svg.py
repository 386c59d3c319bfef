"""SVG's autoencoders: a trained branch beside a frozen DINOv3, and a decoder (shiml20/SVG, arXiv:2510.15301)."""

import math
import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published import autoencoder_trunk
from pipeline.published.checkpoint import fill, heads_of, need, rename
from pipeline.tokenizers.representation import Representation
from pipeline.vision.backbone import IMAGENET

WHAT = "SVG's autoencoder (howlin/SVG: the autoencoder's .ckpt)"
HEADS = {384: 8}  # of the branch by its width
ENCODERS = {  # by the width of the frozen features: what a recipe says of it, which is read from elsewhere
    384: {
        "model_type": "dinov3_vit",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "patch_size": 16,
        "num_register_tokens": 4,
        "use_gated_mlp": True,
    }
}
AS_RELEASED = {  # of the branch
    "statistics": "batch",
    "token": "before",
    "positions": "learned",
    "class_token": True,
    "epsilon": 1e-6,
    "mean": list(IMAGENET[0]),
    "std": list(IMAGENET[1]),
}
BLOCK = r"extra_vit\.encoder\.layers\.encoder_layer_(\d+)\."
NAMES = {
    r"extra_vit\.conv_proj\.(weight|bias)": r"patch_embedding.\1",
    r"extra_vit\.class_token": "class_token",
    r"extra_vit\.encoder\.pos_embedding": "positions",
    r"extra_vit\.encoder\.ln\.(weight|bias)": r"norm.\1",
    r"extra_vit\.heads\.(\d+)\.(weight|bias)": r"head.\1.\2",
    BLOCK + r"ln_([12])\.(weight|bias)": r"blocks.\1.norm\2.\3",
    BLOCK + r"self_attention\.in_proj_(weight|bias)": r"blocks.\1.attention.qkv.\2",
    BLOCK + r"self_attention\.out_proj\.(weight|bias)": r"blocks.\1.attention.proj.\2",
    BLOCK + r"mlp\.0\.(weight|bias)": r"blocks.\1.up.\2",
    BLOCK + r"mlp\.3\.(weight|bias)": r"blocks.\1.down.\2",
    r"mask_token": "token",
}
DROPPED = (r"norm_vit\.(weight|bias)", r"encoder\..*", r"loss\..*")  # unused; the frozen DINOv3; the objective's own


def convert(
    state: Mapping[str, Tensor],
    start: str = "facebook/dinov3-vits16plus-pretrain-lvd1689m",
    stats: str | None = None,
    heads: int | None = None,
    drop: float = 0.1,
    matching: Literal["channels", "none"] = "channels",
    dropout: float = 0.0,
) -> dict[str, object]:
    """{"tokenizer"} of the state of an SVG autoencoder, on the frozen DINOv3 of `start`, a folder or hub id.

    The branch matches the moments of the batch at hand at evaluation too, as released; `matching` is `use_outnorm`
    there. `drop` (`mask_ratio` there) and `dropout` (0.1 there) matter where the tokenizer is trained further. `stats`
    is the released dinov3_sp_stats.pt with mean and std of each channel, without which `encode_dataset` measures ours.
    `heads`, of the branch, follow from the width of published sizes. Raises ValueError for keys or shapes that are not
    SVG's.
    """
    side = math.isqrt(need(state, "extra_vit.encoder.pos_embedding", "SVG").shape[1] - 1)
    branch, decoder = branch_shapes(state, heads), decoder_shapes(state)
    patch, width = branch.pop("patch"), need(state, "decoder.conv_in.weight", "SVG").shape[1] - branch["channels"]
    model = {"model": ENCODERS[width]} if width in ENCODERS else {}
    arguments = {
        "frozen_encoder": {"kind": "vision_transformer", "start": start, **model, "image_patch": patch, "norm": "own"},
        "texture_branch": {
            "kind": "residual",
            **branch,
            **AS_RELEASED,
            "drop": drop,
            "dropout": dropout,
            "matching": matching,
        },
        "pixel_decoder": {"kind": "conv", **decoder},
    }
    tokenizer = build_component("tokenizers", {"kind": "representation", **arguments}, image_size=patch * side)
    if tokenizer.spec.dim != width + branch["channels"]:
        given = tokenizer.spec.dim - branch["channels"]
        raise ValueError(f"{start} has {given} channels, the encoder of this checkpoint {width}; state another start")
    fill_parts(tokenizer, state, len(decoder["multipliers"]))
    if stats is not None:
        autoencoder_trunk.normalised(tokenizer, *autoencoder_trunk.read_statistics(stats))
    return {"tokenizer": tokenizer.eval()}


def branch_shapes(state: Mapping[str, Tensor], heads: int | None) -> dict[str, int]:
    """The constructor arguments of Residual that the keys and shapes imply, and the `patch`."""
    width, _, patch, _ = need(state, "extra_vit.conv_proj.weight", "SVG").shape
    return {
        "patch": patch,
        "channels": len(need(state, "extra_vit.heads.2.bias", "SVG")),
        "width": width,
        "depth": len({match[1] for key in state if (match := re.match(BLOCK, key))}),
        "heads": heads or heads_of(width, HEADS),
        "hidden": len(need(state, "extra_vit.encoder.layers.encoder_layer_0.mlp.0.bias", "SVG")),
    }


def fill_parts(tokenizer: Representation, state: Mapping[str, Tensor], levels: int) -> None:
    """Give branch and decoder their weights; ValueError for keys that are missing or left over."""
    names = autoencoder_trunk.names(levels)
    of_decoder = {pattern: ours for pattern, ours in names.items() if "decoder" in pattern}
    renamed = rename(state, NAMES | of_decoder, DROPPED)
    needed = tokenizer.texture.state_dict()
    branch, decoder = {}, {}
    for name, value in renamed.items():
        if name.startswith("decoder."):
            decoder[name.removeprefix("decoder.")] = autoencoder_trunk.flat(name, value)
        else:
            branch[name] = value.reshape(needed[name].shape) if name in ("class_token", "positions", "token") else value
    fill(tokenizer.texture, branch)
    fill(tokenizer.decoder, decoder)


def decoder_shapes(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The constructor arguments of ConvDecoder that the keys and shapes imply."""
    what = "SVG"
    levels = 1 + max((int(m[1]) for key in state if (m := re.match(r"decoder\.up\.(\d+)\.", key))), default=-1)
    widths = [len(need(state, f"decoder.up.{i}.block.0.conv1.weight", what)) for i in range(levels)]
    base = len(need(state, "decoder.norm_out.weight", what))
    return {
        "width": base,
        "multipliers": [width // base for width in widths],
        "blocks": sum(f"decoder.up.0.block.{j}.conv1.weight" in state for j in range(len(state))) - 1,
        "attention": [i for i in range(levels) if f"decoder.up.{i}.attn.0.q.weight" in state],
        "middle_attention": "decoder.mid.attn_1.q.weight" in state,
    }
