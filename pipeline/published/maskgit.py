"""Checkpoints of TiTok's masked generators, both bodies (bytedance/1d-tokenizer, arXiv:2406.07550)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.networks.bidirectional_transformer import BidirectionalTransformer
from pipeline.published.checkpoint import fill, heads_of, need, rename

WHAT = "MaskGIT on TiTok's ids, BERT or U-ViT body (bytedance/1d-tokenizer: generator_titok_{l32,b64,s128}.bin)"
HEADS = {768: 16, 1024: 16}  # by width, of the published sizes

BERT = {
    r"model\.embeddings\.LayerNorm\.(weight|bias)": r"norm.\1",
    r"model\.embeddings\.position_embeddings\.weight": r"positions",
    r"model\.embeddings\.token_type_embeddings\.weight": r"types",
    r"model\.embeddings\.word_embeddings\.weight": r"words",
    r"model\.encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.(weight|bias)": r"blocks.\1.\2.\3",
    r"model\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)": r"blocks.\1.attention.proj.\2",
    r"model\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(weight|bias)": r"blocks.\1.norm1.\2",
    r"model\.encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)": r"blocks.\1.feed_forward.up.\2",
    r"model\.encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)": r"blocks.\1.feed_forward.down.\2",
    r"model\.encoder\.layer\.(\d+)\.output\.LayerNorm\.(weight|bias)": r"blocks.\1.norm2.\2",
    r"model\.lm_head\.(weight|bias)": r"head.outputs.0.\1",
}
NUMBERS = (r"model\.embeddings\.position_ids",)  # 0, 1, 2, ..., which older versions of transformers saved

UVIT = {
    r"embeddings\.weight": r"words",
    r"pos_embed": r"positions",
    r"blocks\.(\d+)\.attn\.qkv\.weight": r"blocks.\1.attention.qkv.weight",
    r"blocks\.(\d+)\.attn\.proj\.(weight|bias)": r"blocks.\1.attention.proj.\2",
    r"blocks\.(\d+)\.(norm[12])\.(weight|bias)": r"blocks.\1.\2.\3",
    r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)": r"blocks.\1.feed_forward.up.\2",
    r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)": r"blocks.\1.feed_forward.down.\2",
    r"blocks\.(\d+)\.skip_linear\.(weight|bias)": r"blocks.\1.skip.\2",
    r"norm\.(weight|bias)": r"norm.\1",
    r"lm_head\.(weight|bias)": r"head.outputs.0.\1",
}


def convert(state: Mapping[str, Tensor], heads: int | None = None) -> dict[str, object]:
    """{"network", "objective"} of a state of either body, trained as in TiTok.

    Its one table of codes, mask, classes and dropped class becomes our two. `heads` is told by the width for the
    published sizes. Raises ValueError for keys or shapes that are not those of such a generator.
    """
    body = "bert" if "model.lm_head.weight" in state else "uvit"
    weights = (rename_bert if body == "bert" else rename_uvit)(state)
    words, vocab = taken(weights, "words"), len(need(weights, "head.outputs.0.weight", "MaskGIT"))
    weights["token_embedding.tables.0.weight"] = words[: vocab + 1]
    weights["label_embedding.weight"] = words[vocab + 1 :]
    width = words.shape[1]
    dropped = 0.1 if body == "bert" else 0.0  # the U-ViT takes the same settings, and uses none of them
    network = BidirectionalTransformer(
        grid=[len(weights["positions"]) - 1],
        vocab=vocab,
        num_classes=len(words) - vocab - 2,
        depth=1 + highest(weights),
        width=width,
        heads=heads or heads_of(width, HEADS),
        body=body,
        feed_forward_ratio=len(need(weights, "blocks.0.feed_forward.up.weight", "MaskGIT")) / width,
        dropout=dropped,
        attention_dropout=dropped,
    )
    return {"network": fill(network, weights), "objective": build_component("objectives", {"kind": "masked_token"})}


def rename_bert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A BERT body's weights under our names, but for `words`, the table of all ids.

    The token type is 0 everywhere, so its row is added to the positions.
    """
    weights = rename(state, BERT, NUMBERS)
    weights["positions"] = taken(weights, "positions") + taken(weights, "types")[0]
    for key in [key for key in weights if ".query." in key]:
        parts = [taken(weights, key.replace("query", name)) for name in ("query", "key", "value")]
        weights[key.replace("query", "attention.qkv")] = torch.cat(parts)
    return weights


def rename_uvit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A U-ViT body's weights under our names, but for `words`: its three lists of blocks are one here."""
    need(state, "mid_block.norm1.weight", "MaskGIT")
    half = 1 + max((int(key.split(".")[1]) for key in state if key.startswith("in_blocks.")), default=-1)
    starts = {"in_blocks": 0, "out_blocks": half + 1}

    def place(key: str) -> str:
        if key.startswith("mid_block."):
            return key.replace("mid_block", f"blocks.{half}", 1)
        name, _, rest = key.partition(".")
        if name not in starts:
            return key
        number, _, rest = rest.partition(".")
        return f"blocks.{starts[name] + int(number)}.{rest}"

    weights = rename({place(key): value for key, value in state.items()}, UVIT)
    weights["positions"] = taken(weights, "positions")[0]
    return weights


def taken(weights: dict[str, Tensor], name: str) -> Tensor:
    """weights.pop(name), or ValueError saying that this is no such checkpoint."""
    need(weights, name, "MaskGIT")
    return weights.pop(name)


def highest(weights: Mapping[str, Tensor]) -> int:
    """The number of the last block."""
    return max(int(key.split(".")[1]) for key in weights if key.startswith("blocks."))
