"""TiTok checkpoints (bytedance/1d-tokenizer, arXiv:2406.07550)."""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, heads_of, need, rename
from pipeline.published.maskgit_vqgan import decoder_names
from pipeline.published.maskgit_vqgan import shapes as pixel_shapes
from pipeline.saved_folders import load_tokenizer

WHAT = "TiTok, with codes or continuous tokens (yucornetto/tokenizer_titok_*_imagenet: model.safetensors)"
HEADS = {512: 8, 768: 12, 1024: 16}  # by width: small, base, large
NAMES = {
    r"latent_tokens": "encoder.tokens",
    r"(encoder|decoder)\.class_embedding": r"\1.class_token",
    r"(encoder|decoder)\.positional_embedding": r"\1.place_positions",
    r"(encoder|decoder)\.latent_token_positional_embedding": r"\1.token_positions",
    r"(encoder|decoder)\.ln_pre\.(weight|bias)": r"\1.norm_in.\2",
    r"(encoder|decoder)\.ln_post\.(weight|bias)": r"\1.norm_out.\2",
    r"(encoder|decoder)\.transformer\.(\d+)\.ln_([12])\.(weight|bias)": r"\1.blocks.\2.norm\3.\4",
    r"(encoder|decoder)\.transformer\.(\d+)\.attn\.in_proj_(weight|bias)": r"\1.blocks.\2.attention.qkv.\3",
    r"(encoder|decoder)\.transformer\.(\d+)\.attn\.out_proj\.(weight|bias)": r"\1.blocks.\2.attention.proj.\3",
    r"(encoder|decoder)\.transformer\.(\d+)\.mlp\.c_fc\.(weight|bias)": r"\1.blocks.\2.up.\3",
    r"(encoder|decoder)\.transformer\.(\d+)\.mlp\.c_proj\.(weight|bias)": r"\1.blocks.\2.down.\3",
    r"encoder\.patch_embed\.(weight|bias)": r"encoder.patch_embedding.\1",
    r"encoder\.conv_out\.(weight|bias)": r"encoder.projection.\1",
    r"decoder\.decoder_embed\.(weight|bias)": r"decoder.embedding.\1",
    r"decoder\.mask_token": "decoder.mask_token",
    r"quantize\.embedding\.weight": "neck.codebook",
}
OF_PIXELS = {
    r"decoder\.ffn\.0\.(weight|bias)": r"output.patches.\1",
    r"decoder\.conv_out\.(weight|bias)": r"output.conv_out.\1",
}
OF_PROXY = {
    r"decoder\.ffn\.([02])\.(weight|bias)": r"output.logits.\1.\2",
    r"pixel_quantize\.embedding\.weight": "output.codebook",
}
PIXEL_CODEBOOK = "pixel_quantize.embedding.weight"
MATRICES = ("encoder.projection.weight", "output.patches.weight", "output.logits.0.weight", "output.logits.2.weight")


def convert(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    decoder_heads: int | None = None,
    unit_norm: bool | None = None,
    proxy_start: str | None = None,
) -> dict[str, object]:
    """{"tokenizer"} of a TiTok state; which of its three forms it is, the keys tell.

    Two-stage forms have interleaved latents and codes of length one, single-stage forms neither, as released;
    `unit_norm` says it where a codebook is otherwise (`use_l2_norm` there). `heads` and `decoder_heads` follow from the
    widths for the published sizes. A first stage alone has no pixel decoder yet: it takes that of the `maskgit_vqgan`
    whose folder is `proxy_start`. Raises ValueError for keys or shapes that are not TiTok's, and where `proxy_start` is
    missing, or there is a pixel decoder already.
    """
    two_stage = "decoder.ffn.2.weight" in state
    arguments = shapes(state, heads, decoder_heads, two_stage)
    state_unit_norm(arguments["bottleneck"], unit_norm)
    names = NAMES | (OF_PROXY if two_stage else OF_PIXELS)
    if proxy_start is not None:
        arguments |= borrowed_pixels(state, proxy_start, two_stage)
    elif two_stage:
        arguments |= dict(zip(("proxy_vocab", "proxy_dim"), codebook_shape(state)))
        proxy = pixel_shapes(state, "pixel_decoder")
        arguments |= {f"proxy_{name}": value for name, value in proxy.items()}
        names |= decoder_names("pixel_decoder", "output.decoder", len(proxy["multipliers"]), proxy["blocks"])
    return {"tokenizer": assemble("titok", rename(state, names), arguments)}


def state_unit_norm(bottleneck: dict[str, object], unit_norm: bool | None) -> None:
    """Write a stated `unit_norm` into the node of a bottleneck; ValueError where that has no codebook."""
    if unit_norm is None:
        return
    if "vocab" not in bottleneck:
        raise ValueError("unit_norm is about a codebook, and this tokenizer has none; leave it out")
    bottleneck["unit_norm"] = unit_norm


def assemble(kind: str, renamed: dict[str, Tensor], arguments: dict[str, object], **captions: int) -> nn.Module:
    """The tokenizer with these arguments of the weights under our names, kernels of 1x1 made matrices."""
    image_size = arguments["patch_size"] * math.isqrt(len(renamed["encoder.place_positions"]) - 1)
    tokenizer = build_component("tokenizers", {"kind": kind, **arguments}, image_size=image_size, **captions)
    renamed = {name: value[:, :, 0, 0] if name in MATRICES else value for name, value in renamed.items()}
    renamed["decoder.mask_token"] = renamed["decoder.mask_token"][0]
    if arguments.get("proxy_start") is not None:  # what the tokenizer took from there
        pixels = ("output.codebook", "output.decoder.")
        renamed |= {name: value for name, value in tokenizer.state_dict().items() if name.startswith(pixels)}
    return fill(tokenizer, renamed | {"mean": tokenizer.mean, "std": tokenizer.std})


def shapes(
    state: Mapping[str, Tensor], heads: int | None, decoder_heads: int | None, two_stage: bool
) -> dict[str, object]:
    """The constructor arguments of TiTok that the shapes imply, the pixel decoder's widths left out."""
    width, _, patch, _ = need(state, "encoder.patch_embed.weight", "TiTok").shape
    decoder_width, dim = need(state, "decoder.decoder_embed.weight", "TiTok").shape
    places = [len(need(state, f"{half}.positional_embedding", "TiTok")) - 1 for half in ("encoder", "decoder")]
    arguments = {
        "bottleneck": bottleneck(state, dim, two_stage),
        "tokens": len(need(state, "latent_tokens", "TiTok")),
        "width": width,
        "depth": depth(state, "encoder"),
        "heads": heads or heads_of(width, HEADS),
        "patch_size": patch,
        "decoder_width": decoder_width,
        "decoder_depth": depth(state, "decoder"),
        "decoder_heads": decoder_heads or heads_of(decoder_width, HEADS, "decoder_heads"),
        "decoder_patch_size": patch * math.isqrt(places[0]) // math.isqrt(places[1]),
        "head": "proxy" if two_stage else "pixels",
        "interleaved": two_stage,
    }
    return arguments


def codebook_shape(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Rows and channels of the pixel codebook."""
    return tuple(need(state, PIXEL_CODEBOOK, "two-stage TiTok").shape)


def borrowed_pixels(state: Mapping[str, Tensor], folder: str, two_stage: bool) -> dict[str, object]:
    """The arguments of a first stage whose pixel decoder is that of the `maskgit_vqgan` in `folder`."""
    if PIXEL_CODEBOOK in state or not two_stage:
        held = "has a pixel decoder of its own" if two_stage else "makes pixels directly"
        raise ValueError(f"proxy_start is for a first stage alone, and this checkpoint {held}; leave it out")
    config = load_tokenizer(folder, "proxy_start").config
    decoder = {f"proxy_{name}": config.get(name) for name in ("width", "multipliers", "blocks")}
    sizes = {f"proxy_{name}": config.get("bottleneck", {}).get(name) for name in ("vocab", "dim")}
    stated = {name: value for name, value in (decoder | sizes).items() if value is not None}
    return stated | {"proxy_start": folder}  # the tokenizer says where the folder's kind does not fit


def bottleneck(state: Mapping[str, Tensor], dim: int, two_stage: bool) -> dict[str, object]:
    outputs = len(need(state, "encoder.conv_out.weight", "TiTok"))
    if "quantize.embedding.weight" in state:
        vocab = len(state["quantize.embedding.weight"])
        return {"kind": "vector_quantize", "dim": dim, "vocab": vocab, "unit_norm": two_stage}
    if outputs != 2 * dim:
        raise ValueError(f"a TiTok without codebook has mean and log variance, {2 * dim} channels; here are {outputs}")
    return {"kind": "gaussian", "dim": dim}


def depth(state: Mapping[str, Tensor], half: str) -> int:
    need(state, f"{half}.transformer.0.ln_1.weight", "TiTok")
    return 1 + max(int(key.split(".")[2]) for key in state if key.startswith(f"{half}.transformer."))
