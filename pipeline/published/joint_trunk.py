"""The keys that MaskGen's two generators share, under our names, and the sizes that they tell."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.published.checkpoint import need, rename

HEADS = {1024: 16, 1280: 16}  # by width, of the published sizes
CLIP_TOKENS = 77  # places of a caption in OpenCLIP's text encoders
DROPPED = (r"lm_head\.weight",)  # of a generator with tied weights: the table of the embedding again


def names(blocks: str, norm: str, text: str, pooled: str) -> dict[str, str]:
    """Regular expressions of the joint blocks' keys and what they become; projections of attention stay apart."""
    block = rf"{blocks}\.(\d+)"
    return {
        rf"{block}\.attn\.(to_[qkv]|add_[qkv]_proj)\.(weight|bias)": r"trunk.blocks.\1.attention.\2.\3",
        rf"{block}\.attn\.to_out\.0\.(weight|bias)": r"trunk.blocks.\1.attention.proj.\2",
        rf"{block}\.attn\.to_add_out\.(weight|bias)": r"trunk.blocks.\1.attention.text_proj.\2",
        rf"{block}\.ff\.net\.0\.proj\.(weight|bias)": r"trunk.blocks.\1.feed_forward.up.\2",
        rf"{block}\.ff\.net\.2\.(weight|bias)": r"trunk.blocks.\1.feed_forward.down.\2",
        rf"{block}\.ff_context\.net\.0\.proj\.(weight|bias)": r"trunk.blocks.\1.text_feed_forward.up.\2",
        rf"{block}\.ff_context\.net\.2\.(weight|bias)": r"trunk.blocks.\1.text_feed_forward.down.\2",
        rf"{block}\.norm1\.linear\.(weight|bias)": r"trunk.blocks.\1.modulation.\2",
        rf"{block}\.norm1_context\.linear\.(weight|bias)": r"trunk.blocks.\1.text_modulation.\2",
        rf"{norm}\.linear\.(weight|bias)": r"trunk.modulation.\1",
        rf"{text}\.(weight|bias)": r"text.embedding.\1",
        rf"{pooled}\.(weight|bias)": r"text.pooled_embedding.\1",
    }


def sizes(state: Mapping[str, Tensor], blocks: str, text: str, pooled: str, what: str) -> dict[str, int]:
    """The constructor arguments that the shapes imply; the pooled vector has as many channels as a place of a caption.

    Raises ValueError where this is no checkpoint of the format `what`.
    """
    width, channels = need(state, f"{text}.weight", what).shape
    first = f"{blocks}.0.ff.net.0.proj.weight"
    return {
        "width": width,
        "depth": 1 + max((int(key.split(".")[1]) for key in state if key.startswith(f"{blocks}.")), default=-1),
        "feed_forward_ratio": len(need(state, first, what)) / width,
        "text_dim": channels,
        "pooled_dim": channels,
        "score_width": need(state, f"{pooled}.weight", what).shape[1] - channels,
    }


def joined(state: Mapping[str, Tensor], keys: Mapping[str, str], dropped: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The weights under our names: projections of attention joined, and scale and shift in our order."""
    weights = rename(state, keys, dropped)
    for key in [key for key in weights if ".to_q." in key or ".add_q_proj." in key]:
        parts = [weights.pop(key.replace("_q", f"_{name}")) for name in "qkv"]
        name = "text_qkv" if "add_q_proj" in key else "qkv"
        weights[key.replace("add_q_proj", name).replace("to_q", name)] = torch.cat(parts)
    last = max(int(key.split(".")[2]) for key in weights if key.startswith("trunk.blocks."))
    for name in ("trunk.modulation", f"trunk.blocks.{last}.text_modulation"):
        for kind in ("weight", "bias"):
            weights[f"{name}.{kind}"] = torch.cat(weights[f"{name}.{kind}"].chunk(2)[::-1])
    return weights


def split_score(weights: dict[str, Tensor], width: int, order: Tensor) -> None:
    """Take the columns of the score out of the pooled vector's projection; `order` lists them as we have them."""
    if width:
        joint = weights["text.pooled_embedding.weight"]
        weights["text.pooled_embedding.weight"] = joint[:, :-width].contiguous()
        weights["vector.score_embedding.weight"] = joint[:, -width:][:, order].contiguous()


def with_null(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The weights with the network's features of no caption, which no file holds and `set_empty_text` replaces."""
    return weights | {name: value for name, value in network.state_dict().items() if name.startswith("text.null.")}
