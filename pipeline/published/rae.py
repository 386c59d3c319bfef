"""RAE: decoders of frozen features, alone or with their encoder (bytetriper/RAE, arXiv:2510.11690)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.components import build as build_component
from pipeline.published.checkpoint import fill, heads_of, need, read, rename
from pipeline.tokenizers.representation import Representation
from pipeline.vision.backbone import IMAGENET

WHAT = "RAE's decoder of DINOv2 features (nyu-visionx/RAE-collections: decoders/dinov2/.../model.pt), or all of an RAE"
HEADS = {512: 16, 768: 12, 1024: 16, 1152: 16}  # by the decoder's width
ENCODER_HEADS = {384: 6, 768: 12, 1024: 16}  # of DINOv2 by its width
LAYERS = {384: 12, 768: 12, 1024: 24}  # likewise
ENCODER_PATCH = 14  # of DINOv2
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
ENCODER_NAMES = {  # of transformers' Dinov2WithRegistersModel, whose attention had other names before its version 5
    r"(embeddings\..*|encoder\.layer\.\d+\.(?:norm|mlp|layer_scale).*)": r"\1",
    r"(encoder\.layer\.\d+\.attention\.)([qkvo]_proj)\.(.*)": r"\1\2.\3",
    r"(encoder\.layer\.\d+\.attention\.)attention\.query\.(.*)": r"\1q_proj.\2",
    r"(encoder\.layer\.\d+\.attention\.)attention\.key\.(.*)": r"\1k_proj.\2",
    r"(encoder\.layer\.\d+\.attention\.)attention\.value\.(.*)": r"\1v_proj.\2",
    r"(encoder\.layer\.\d+\.attention\.)output\.dense\.(.*)": r"\1o_proj.\2",
}
OF_WHOLE = {r"decoder\.(.*)": r"\1", r"encoder\.encoder\.(.*)": r"frozen:\1"}


def convert(
    state: Mapping[str, Tensor],
    start: str = "facebook/dinov2-with-registers-base",
    stats: str | None = None,
    heads: int | None = None,
    encoder_heads: int | None = None,
    encoder_input_size: int | None = None,
    colours: list[list[float]] | None = None,
) -> dict[str, object]:
    """{"tokenizer"} of the state of an RAE on DINOv2 with registers: of all of it, or of its decoder.

    A decoder alone is put on the frozen encoder of `start`, a folder or hub id; all of an RAE has its encoder, of
    `encoder_heads`. `stats` is the published stat.pt with the latents' mean and variance [C, h, w], without which
    `encode_dataset` measures ours. The numbers of heads follow from the width of published sizes. The encoder reads
    images of `encoder_input_size` pixels; by default as many as give the decoder its grid, while another grid of tokens
    is resized to that. `colours` are their mean and their std, ImageNet's by default. Raises ValueError for keys or
    shapes that are not RAE's.
    """
    frozen, decoder = split(state)
    dim = need(decoder, "decoder_embed.weight", "RAE").shape[1]
    side = math.isqrt(need(decoder, "decoder_pos_embed", "RAE").shape[1] - 1)
    vit = decoder_sizes(decoder, heads)
    model = encoder_sizes(frozen, encoder_heads) if frozen else published_sizes(dim)
    image_size, grid = vit["patch"] * side, (encoder_input_size or side * model["patch_size"]) // model["patch_size"]
    if grid < 1 or image_size % grid:
        raise ValueError(f"images of {image_size} pixels have no grid of {grid} tokens; correct encoder_input_size")
    encoder = {"start": "random" if frozen else start, "model": model, "image_patch": image_size // grid}
    moments = dict(zip(("mean", "std"), map(list, colours or IMAGENET), strict=True))
    arguments = {
        "frozen_encoder": {"kind": "vision_transformer", **encoder, **moments},
        "pixel_decoder": {"kind": "vit", **vit, **moments},
        "statistics": "element",
    }
    tokenizer = build_component("tokenizers", {"kind": "representation", **arguments}, image_size=image_size)
    fill(tokenizer.decoder, decoder_state(decoder, vit["depth"]))
    if frozen:
        fill_encoder(tokenizer, frozen)
    if stats is not None:
        load_statistics(tokenizer, stats)
    return {"tokenizer": tokenizer.eval()}


def split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder's part of a state, empty where it is a decoder's alone, and the decoder's."""
    if "decoder.decoder_embed.weight" not in state:
        return {}, dict(state)
    renamed = rename(state, OF_WHOLE)
    frozen = {key.removeprefix("frozen:"): value for key, value in renamed.items() if key.startswith("frozen:")}
    return frozen, {key: value for key, value in renamed.items() if not key.startswith("frozen:")}


def decoder_sizes(state: Mapping[str, Tensor], heads: int | None) -> dict[str, int]:
    """The constructor arguments of VitDecoder that the shapes imply."""
    width = len(need(state, "decoder_embed.weight", "RAE"))
    return {
        "width": width,
        "depth": 1 + max((int(key.split(".")[1]) for key in state if key.startswith("decoder_layers.")), default=-1),
        "heads": heads or heads_of(width, HEADS),
        "hidden": len(need(state, "decoder_layers.0.intermediate.dense.bias", "RAE")),
        "patch": math.isqrt(len(need(state, "decoder_pred.bias", "RAE")) // 3),
    }


def published_sizes(dim: int) -> dict[str, object]:
    """What a recipe says of a DINOv2 with registers of this width, which is read from elsewhere."""
    model = {"model_type": "dinov2_with_registers", "hidden_size": dim, "patch_size": ENCODER_PATCH}
    return model | ({"num_hidden_layers": LAYERS[dim]} if dim in LAYERS else {})


def encoder_sizes(frozen: Mapping[str, Tensor], heads: int | None) -> dict[str, object]:
    """The config of a DINOv2 with registers, as far as its shapes imply it."""
    what = "RAE on DINOv2 with registers"
    width, _, patch, _ = need(frozen, "embeddings.patch_embeddings.projection.weight", what).shape
    places = need(frozen, "embeddings.position_embeddings", what).shape[1] - 1
    need(frozen, "encoder.layer.0.norm1.weight", what)
    return {
        "model_type": "dinov2_with_registers",
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(key.split(".")[2]) for key in frozen if key.startswith("encoder.layer.")),
        "num_attention_heads": heads or heads_of(width, ENCODER_HEADS, "encoder_heads"),
        "mlp_ratio": len(need(frozen, "encoder.layer.0.mlp.fc1.bias", what)) // width,
        "patch_size": patch,
        "image_size": patch * math.isqrt(places),
        "num_register_tokens": need(frozen, "embeddings.register_tokens", what).shape[1],
    }


def decoder_state(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Under our names, with queries, keys and values in one."""
    renamed = rename(state, NAMES, FIXED)
    renamed["class_token"] = need(renamed, "class_token", "RAE")[0]
    for i in range(depth):
        for kind in ("weight", "bias"):
            parts = [need(renamed, f"blocks.{i}.{part}.{kind}", "RAE") for part in ("query", "key", "value")]
            renamed[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
            for part in ("query", "key", "value"):
                del renamed[f"blocks.{i}.{part}.{kind}"]
    return renamed


def fill_encoder(tokenizer: Representation, frozen: Mapping[str, Tensor]) -> None:
    """Give the encoder its weights; the last norm has a scale and a shift in transformers, which are not used."""
    unused = {f"layernorm.{name}": value for name, value in tokenizer.encoder.model.layernorm.state_dict().items()}
    fill(tokenizer.encoder.model, rename(frozen, ENCODER_NAMES) | unused)
    tokenizer.encoder.source = "RAE"
    tokenizer.keep_source()


def load_statistics(tokenizer: Representation, stats: str) -> None:
    """The mean and std of codes from a published stat.pt; ValueError where they are of another grid or width."""
    known = read(stats)
    mean, variance = (need(known, name, "RAE statistics").flatten(1).T for name in ("mean", "var"))
    if mean.shape != tokenizer.mean.shape:
        raise ValueError(f"{stats} is of {list(mean.shape)} values, the code of {list(tokenizer.mean.shape)}")
    tokenizer.mean.copy_(mean), tokenizer.std.copy_((variance + EPSILON).sqrt())
