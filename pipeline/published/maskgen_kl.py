"""MaskGen-KL checkpoints (bytedance/1d-tokenizer, arXiv:2501.07730)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.networks.joint_masked_latent_transformer import JointMaskedLatentTransformer
from pipeline.published.checkpoint import fill, heads_of, need
from pipeline.published.joint_trunk import CLIP_TOKENS, HEADS, joined, names, sizes, split_score, with_null
from pipeline.published.mar import HEAD, depth_of
from pipeline.ranges import Count, NotNegative

WHAT = "MaskGen-KL, masked continuous tokens from captions (turkeyju/generator_maskgen_kl_{l,xl}: model.safetensors)"
NAMES = names("decoder_blocks", "decoder_norm", "text_emb", "text_pooled_emb") | {
    r"z_proj\.(weight|bias)": r"token_embedding.\1",
    r"z_proj_ln\.(weight|bias)": r"norm_in.\1",
    r"decoder_pos_embed_learned": "positions",
    r"diffusion_pos_embed_learned": "state_positions",
    r"mask_token": "mask_token",
    **HEAD,
}


def convert(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    text_tokens: Count = CLIP_TOKENS,
    condition_drop: float = 0.1,
    score: NotNegative = 6.0,
) -> dict[str, object]:
    """{"network", "objective"} of a MaskGen-KL state, whose codes are known times 0.7525 (latents.scale).

    The features of the empty caption come with the run that uses it. Raises ValueError for keys or shapes that are not
    MaskGen-KL's.
    """
    arguments = sizes(state, "decoder_blocks", "text_emb", "text_pooled_emb", "MaskGen-KL")
    dim = need(state, "z_proj.weight", "MaskGen-KL").shape[1]
    network = JointMaskedLatentTransformer(
        grid=[need(state, "decoder_pos_embed_learned", "MaskGen-KL").shape[1]],
        dim=dim,
        num_classes=0,
        heads=heads or heads_of(arguments["width"], HEADS),
        outputs=len(need(state, "diffloss.net.final_layer.linear.bias", "MaskGen-KL")) // dim,
        head_depth=depth_of(state, "diffloss.net.res_blocks."),
        head_width=len(need(state, "diffloss.net.input_proj.weight", "MaskGen-KL")),
        condition_drop=condition_drop,
        score=score,
        text_tokens=text_tokens,
        **arguments,
    )
    weights = joined(state, NAMES)
    for name in ("positions", "state_positions"):
        weights[name] = weights[name][0]
    weights["mask_token"] = weights["mask_token"][0, 0]
    width = arguments["score_width"]  # sines and cosines in turns there
    split_score(weights, width, torch.cat([torch.arange(1, width, 2), torch.arange(0, width, 2)]))
    fill(network, with_null(weights, network))
    objective = {"kind": "masked_latent", "schedule": "arccos"}
    return {"network": network, "objective": build_component("objectives", objective)}
