"""MaskGen-VQ checkpoints (bytedance/1d-tokenizer, arXiv:2501.07730)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.networks.joint_masked_transformer import JointMaskedTransformer
from pipeline.published.checkpoint import fill, heads_of, need
from pipeline.published.joint_trunk import CLIP_TOKENS, DROPPED, HEADS, joined, names, sizes, split_score, with_null
from pipeline.ranges import Count, NotNegative

WHAT = "MaskGen-VQ, masked ids from captions (turkeyju/generator_maskgen_vq_{l,xl}: model.safetensors)"
NAMES = names("blocks", "norm", "text_embed_proj", "cond_pooled_proj") | {
    r"embeddings\.weight": "tokens.outputs.0.weight",
    r"pos_embed": "positions",
}


def convert(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    vocab: Count = 8192,
    text_tokens: Count = CLIP_TOKENS,
    condition_drop: float = 0.1,
    score: NotNegative = 6.0,
) -> dict[str, object]:
    """{"network", "objective"} of a MaskGen-VQ state, whose logits are products with its table of ids.

    The table has rows of classes that nothing reads, which stay behind; `vocab` says where the ids end. The features of
    the empty caption come with the run that uses it. Raises ValueError for keys or shapes that are not MaskGen-VQ's.
    """
    arguments = sizes(state, "blocks", "text_embed_proj", "cond_pooled_proj", "MaskGen-VQ")
    table = need(state, "embeddings.weight", "MaskGen-VQ")
    if len(table) <= vocab:
        raise ValueError(f"the table of ids has {len(table)} rows, and needs one of a mask after {vocab}; state vocab=")
    if "lm_head.bias" in state:
        raise ValueError("this MaskGen-VQ has logits of their own layer; only those with tied weights are read")
    network = JointMaskedTransformer(
        grid=[need(state, "pos_embed", "MaskGen-VQ").shape[1]],
        vocab=vocab,
        num_classes=0,
        heads=heads or heads_of(arguments["width"], HEADS),
        condition_drop=condition_drop,
        score=score,
        text_tokens=text_tokens,
        **arguments,
    )
    weights = joined(state, NAMES, DROPPED)
    weights["tokens.outputs.0.weight"] = table[: vocab + 1].clone()
    weights["positions"] = weights["positions"][0]
    width = arguments["score_width"]
    order = torch.cat([torch.arange(width // 2, 2 * (width // 2)), torch.arange(width // 2)])  # sines come first there
    split_score(weights, width, torch.cat([order, torch.arange(len(order), width)]))
    fill(network, with_null(weights, network))
    return {"network": network, "objective": build_component("objectives", {"kind": "masked_token"})}
