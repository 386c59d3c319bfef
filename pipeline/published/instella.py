"""Instella-T2I's binary autoencoder and its two generators (AMD-AGI/Instella-T2I, arXiv:2506.21022)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, need, rename
from pipeline.ranges import ImageSize

WHAT = "Instella-T2I, autoencoder or generators (amd/Instella-T2I: bae/model.safetensors, ar.pt, diffusion.pt)"
ATTENTION = r"transformer_blocks\.(\d+)\.attn"
AUTOENCODER = {
    r"encoder\.patch_embedder\.(weight|bias)": r"encoder.patch_embedding.\1",
    r"encoder\.latent_tokens": "encoder.tokens",
    r"encoder\.proj_out\.(weight|bias)": r"encoder.projection.\1",
    r"encoder\.down_layers\.(\d+)\.(.*)": r"encoder.resamplers.\1.\2",
    r"decoder\.up_layers\.(\d+)\.(.*)": r"decoder.resamplers.\1.\2",
    r"decoder\.input_layer\.0\.weight": "decoder.norm_in.weight",
    r"decoder\.input_layer\.1\.(weight|bias)": r"decoder.embedding.\1",
    r"decoder\.mask_tokens": "decoder.mask_token",
    r"(encoder|decoder)\.norm_out\.weight": r"\1.norm_out.weight",
    rf"(encoder|decoder)\.{ATTENTION}\.([qkv])_proj\.weight": r"\1.blocks.\2.attention.\3",
    rf"(encoder|decoder)\.{ATTENTION}\.o_proj\.weight": r"\1.blocks.\2.attention.proj.weight",
    rf"(encoder|decoder)\.{ATTENTION}\.norm_q\.weight": r"\1.blocks.\2.attention.query_norm.weight",
    rf"(encoder|decoder)\.{ATTENTION}\.norm_k\.weight": r"\1.blocks.\2.attention.key_norm.weight",
    r"(encoder|decoder)\.transformer_blocks\.(\d+)\.input_layernorm\.weight": r"\1.blocks.\2.norm1.weight",
    r"(encoder|decoder)\.transformer_blocks\.(\d+)\.post_attention_layernorm\.weight": r"\1.blocks.\2.norm2.weight",
    r"(encoder|decoder)\.transformer_blocks\.(\d+)\.mlp\.(gate|up)_proj\.weight": r"\1.blocks.\2.feed_forward.\3",
    r"(encoder|decoder)\.transformer_blocks\.(\d+)\.mlp\.down_proj\.weight": r"\1.blocks.\2.feed_forward.down.weight",
    r"quantizer\.proj\.0\.(weight|bias)": r"neck.logits.\1",
    r"quantizer\.embed": "neck.rows",
    r"to_pixel\.(weight|bias)": r"output.patches.\1",
}


GENERATORS = {
    r"x_embedder\.(weight|bias)": r"bit_embedding.\1",
    r"transformer_blocks\.(\d+)\.pos_emb": r"blocks.\1.positions",
    r"transformer_blocks\.(\d+)\.proj_cond\.(weight|bias)": r"blocks.\1.text_projection.\2",
    rf"{ATTENTION}\.([qkv])_proj\.weight": r"blocks.\1.attention.\2",
    rf"{ATTENTION}\.o_proj\.weight": r"blocks.\1.attention.proj.weight",
    rf"{ATTENTION}\.norm_q\.weight": r"blocks.\1.attention.query_norm.weight",
    rf"{ATTENTION}\.norm_k\.weight": r"blocks.\1.attention.key_norm.weight",
    r"transformer_blocks\.(\d+)\.(?:mlp|ff)\.net\.0\.proj\.(weight|bias)": r"blocks.\1.feed_forward.up.\2",
    r"transformer_blocks\.(\d+)\.(?:mlp|ff)\.net\.2\.(weight|bias)": r"blocks.\1.feed_forward.down.\2",
}
AUTOREGRESSIVE = {
    r"split_token": "class_embedding.weight",
    r"transformer_blocks\.(\d+)\.input_layernorm\.weight": r"blocks.\1.norm1.weight",
    r"transformer_blocks\.(\d+)\.post_attention_layernorm\.weight": r"blocks.\1.norm2.weight",
    r"norm_out\.weight": "last_norm.weight",
    r"proj_out\.(weight|bias)": r"head.linear.\1",
}
DIFFUSION = {
    r"time_embed\.linear_1\.(weight|bias)": r"time_embedding.up.\1",
    r"time_embed\.linear_2\.(weight|bias)": r"time_embedding.down.\1",
    r"transformer_blocks\.(\d+)\.norm1\.linear\.(weight|bias)": r"blocks.\1.modulation.\2",
    r"norm_out\.linear\.(weight|bias)": r"head.modulation.\1",
    r"proj_out\.(weight|bias)": r"head.linear.\1",
}


def convert(
    state: Mapping[str, Tensor],
    image_size: ImageSize = 512,
    axes: list[int] | None = None,
    merge_after: list[int] | None = None,
    split_after: list[int] | None = None,
    text_tokens: int = 128,
) -> dict[str, object]:
    """{"tokenizer"} of the autoencoder's state, {"network", "objective"} of a generator's.

    The autoencoder is for images of any size: here for `image_size`. `axes`, `merge_after` and `split_after` are those
    of the released one unless stated. The captions of a generator have `text_tokens` places, of which no weight tells.
    Raises ValueError for keys or shapes that are not Instella-T2I's.
    """
    if "proj_out.weight" in state:
        return convert_generator(state, text_tokens)
    stated = {"rotary_axes": axes, "merge_after": merge_after, "split_after": split_after}
    arguments = autoencoder_shapes(state) | {name: value for name, value in stated.items() if value is not None}
    images = {"image_size": image_size, "image_channels": state["encoder.patch_embedder.weight"].shape[1]}
    tokenizer = build_component("tokenizers", {"kind": "merging_vit", **arguments}, **images)
    weights = join_layers(pair_halves(rename(state, AUTOENCODER), arguments["width"] // arguments["heads"]))
    for name in ("encoder.tokens", "decoder.mask_token"):
        weights[name] = weights[name][0]
    return {"tokenizer": fill(tokenizer, weights | {"mean": tokenizer.mean, "std": tokenizer.std})}


def autoencoder_shapes(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The constructor arguments that the shapes imply."""
    what = "Instella-T2I"
    width, _, patch_size, _ = need(state, "encoder.patch_embedder.weight", what).shape
    head_width = len(need(state, "encoder.transformer_blocks.0.attn.norm_q.weight", what))
    bits, dim = need(state, "quantizer.embed", what).shape
    wide = len(need(state, "decoder.input_layer.1.weight", what))
    return {
        "bottleneck": {"kind": "bernoulli", "dim": dim, "bits": bits},
        "tokens": need(state, "encoder.latent_tokens", what).shape[1],
        "width": width,
        "depth": count_blocks(state, "encoder."),
        "heads": width // head_width,
        "patch_size": patch_size,
        "decoder_width": wide,
        "decoder_depth": count_blocks(state, "decoder."),
        "decoder_heads": wide // head_width,
    }


def convert_generator(state: Mapping[str, Tensor], text_tokens: int) -> dict[str, object]:
    """{"network", "objective"}; the split token of the autoregressive one is its null class.

    The null is the empty caption, whose features are no weights: `network.set_empty_text` takes them. Left behind: the
    embedding of time of the autoregressive one, which it never uses.
    """
    causal, what = "split_token" in state, "Instella-T2I"
    bits, width = need(state, "proj_out.weight", what).shape
    places = need(state, "transformer_blocks.0.pos_emb", what).shape[1]
    depth, head_width = count_blocks(state), len(need(state, "transformer_blocks.0.attn.norm_q.weight", what))
    shape = {"depth": depth, "width": width, "heads": width // head_width}
    text_dim = need(state, "transformer_blocks.0.proj_cond.weight", what).shape[1]
    derived = {"vocab": 2, "codebooks": bits, "num_classes": 0, "grid": [places - 1 if causal else places]}
    derived |= {"text_tokens": text_tokens, "text_dim": text_dim, "text_layers": depth}
    kinds = ("causal_bit_transformer", "next_token") if causal else ("bit_diffusion_transformer", "bit_diffusion")
    network = build_component("networks", {"kind": kinds[0], **shape, "text_null": "empty"}, **derived)
    names = GENERATORS | (AUTOREGRESSIVE if causal else DIFFUSION)
    weights = rename(state, names, dropped=(r"time_embed\..*",) if causal else ())
    for block in (f"blocks.{i}" for i in range(depth)):
        weights[f"{block}.positions"] = weights[f"{block}.positions"][0]
        weights[f"{block}.attention.query.weight"] = weights.pop(f"{block}.attention.q")
        keys_values = [weights.pop(f"{block}.attention.{part}") for part in "kv"]
        weights[f"{block}.attention.key_value.weight"] = torch.cat(keys_values)
    if causal:
        weights["class_embedding.weight"] = weights["class_embedding.weight"][0]
    else:
        for part in ("weight", "bias"):  # theirs is [scale, shift]
            weights[f"head.modulation.{part}"] = weights[f"head.modulation.{part}"].roll(width, 0)
    weights |= {name: value for name, value in network.state_dict().items() if name.startswith("text.null.")}
    return {"network": fill(network, weights), "objective": build_component("objectives", {"kind": kinds[1]})}


def count_blocks(state: Mapping[str, Tensor], prefix: str = "") -> int:
    """Blocks below `prefix`; ValueError where there are none."""
    names = [key.removeprefix(prefix).split(".") for key in state if key.startswith(f"{prefix}transformer_blocks.")]
    if not names:
        raise ValueError(f"not an Instella-T2I checkpoint: it has no {prefix}transformer_blocks")
    return 1 + max(int(name[1]) for name in names)


def pair_halves(weights: Mapping[str, Tensor], head_width: int) -> dict[str, Tensor]:
    """Queries' and keys' channels with i and i + D / 2 of a head side by side, where `rotate` has its pairs."""
    order = torch.arange(head_width).unflatten(0, (2, -1)).T.flatten()
    paired = (".attention.q", ".attention.k", ".query_norm.weight", ".key_norm.weight")
    return {
        name: value.unflatten(0, (-1, head_width))[:, order].flatten(0, 1) if name.endswith(paired) else value
        for name, value in weights.items()
    }


def join_layers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values, and gate and value of SwiGLU, each as one layer."""
    for name in [name for name in weights if name.endswith(".attention.q")]:
        block = name.removesuffix(".q")
        weights[f"{block}.qkv.weight"] = torch.cat([weights.pop(f"{block}.{part}") for part in "qkv"])
    for name in [name for name in weights if name.endswith(".feed_forward.gate")]:
        block = name.removesuffix(".gate")
        weights[f"{block}.up.weight"] = torch.cat([weights.pop(f"{block}.{part}") for part in ("gate", "up")])
    return weights
