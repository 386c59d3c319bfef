"""VFM-VAE's autoencoders: three layers of a frozen vision model, compressed, and a pyramid of images
(tianciB/VFM-VAE, arXiv:2510.18457)."""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from pipeline.components import build as build_component
from pipeline.nn.pyramid_decoder import Activation
from pipeline.published.autoencoder_trunk import normalised, read_statistics
from pipeline.published.checkpoint import fill, need, rename
from pipeline.published.rectok import in_shape

WHAT = "VFM-VAE's autoencoder (tiancibi/VFM-VAE: vfm_vae/*.pth)"
ENCODERS = {  # by the width of the taps: what a recipe says of the vision model, which is read from elsewhere
    1024: {
        "model_type": "siglip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
        "image_size": 512,
    }
}
COLOURS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}  # of SigLIP 2
PROJECTIONS = {
    r"ldm_adapter\.patch_quants\.(\d+)\.0\.": r"projections.\1.",
    r"ldm_adapter\.final_quant\.()": r"joint.\1",
    r"ldm_adapter\.post_quant\.()": r"post.\1",
}
OF_PROJECTION = {  # below blocks.J.
    r"attn\.qkv\.weight": "attention.qkv.weight",
    r"attn\.q_bias": "attention.query_bias",
    r"attn\.v_bias": "attention.value_bias",
    r"attn\.proj\.(weight|bias)": r"attention.proj.\3",
    r"norm([123])\.(weight|bias)": r"norm\3.\4",
    r"proj\.(weight|bias)": r"skip.\3",
    r"mlp\.norm\.(weight|bias)": r"feed_forward.norm.\3",
    r"mlp\.w0\.(weight|bias)": r"feed_forward.gate.\3",
    r"mlp\.w1\.(weight|bias)": r"feed_forward.up.\3",
    r"mlp\.w2\.(weight|bias)": r"feed_forward.down.\3",
}
LEVEL = r"synthesis\.blocks\.(\d+)\."
CONVNEXT = LEVEL + r"convs\.(\d+)\."  # after `numbered`
NAMES = {
    r"mapping\.mlp\.fc0\.(weight|bias)": r"decoder.mapping.hidden.\1",
    r"mapping\.mlp\.fc1\.(weight|bias)": r"decoder.mapping.out.\1",
    r"synthesis\.z_convs\.(\d+)\.first\.0\.weight": r"decoder.spatial.\1.depthwise.weight",
    r"synthesis\.z_convs\.(\d+)\.first\.1\.weight": r"decoder.spatial.\1.pointwise.weight",
    r"synthesis\.z_convs\.(\d+)\.first\.2\.(weight|bias)": r"decoder.spatial.\1.norm1.\2",
    r"synthesis\.z_convs\.(\d+)\.last\.0\.weight": r"decoder.spatial.\1.mix.weight",
    r"synthesis\.z_convs\.(\d+)\.last\.1\.(weight|bias)": r"decoder.spatial.\1.norm2.\2",
    LEVEL + r"seperate_upsample_conv\.(norm|depthwise|pointwise)\.(weight|bias)": r"decoder.levels.\1.enter.\2.\3",
    LEVEL + r"last_upsample_conv\.(norm|depthwise|pointwise)\.(weight|bias)": r"decoder.levels.\1.carry.\2.\3",
    LEVEL + r"self_attns\.(\d+)\.attn\.norm\.gamma": r"decoder.levels.\1.attention.\2.norm1.scale",
    LEVEL + r"self_attns\.(\d+)\.attn\.null_kv": r"decoder.levels.\1.attention.\2.attention.null",
    LEVEL + r"self_attns\.(\d+)\.attn\.(to_\w+)\.weight": r"decoder.levels.\1.attention.\2.attention.\3.weight",
    LEVEL + r"self_attns\.(\d+)\.ff\.0\.gamma": r"decoder.levels.\1.attention.\2.norm2.scale",
    LEVEL + r"self_attns\.(\d+)\.ff\.1\.(weight|bias)": r"decoder.levels.\1.attention.\2.up.\3",
    LEVEL + r"self_attns\.(\d+)\.ff\.3\.(weight|bias)": r"decoder.levels.\1.attention.\2.down.\3",
    LEVEL + r"torgb\.affine\.proj\.(weight|bias)": r"decoder.colours.\1.scales.\2",
    LEVEL + r"torgb\.(weight|bias)": r"decoder.colours.\1.\2",
    CONVNEXT + r"affine_pw1\.proj\.(weight|bias)": r"decoder.levels.\1.blocks.\2.up.scales.\3",
    CONVNEXT + r"dwconv\.(weight|bias)": r"decoder.levels.\1.blocks.\2.depthwise.\3",
    CONVNEXT + r"norm\.(weight|bias)": r"decoder.levels.\1.blocks.\2.norm.\3",
    CONVNEXT + r"pwconv1\.(weight|bias)": r"decoder.levels.\1.blocks.\2.up.\3",
    CONVNEXT + r"pwconv2\.(weight|bias)": r"decoder.levels.\1.blocks.\2.down.\3",
    CONVNEXT + r"gamma": r"decoder.levels.\1.blocks.\2.scale",
    CONVNEXT + r"noise_const": r"decoder.levels.\1.blocks.\2.noise.noise",
    CONVNEXT + r"noise_strength": r"decoder.levels.\1.blocks.\2.noise.strength",
}
NAMES |= {
    f"{theirs}blocks\\.(\\d+)\\.{inner}": rf"{ours}blocks.\2.{name}"
    for theirs, ours in PROJECTIONS.items()
    for inner, name in OF_PROJECTION.items()
}
DROPPED = (  # the frozen model, the teacher's projection, and what is fixed or unused
    r"vfm_encoder\..*",
    r"ldm_adapter\.linear_proj\.weight",
    r".*\.zero_k_bias",
    r".*\.blur_weight",
    r"mapping\.x_avg",
)


def convert(
    state: Mapping[str, Tensor],
    start: str = "google/siglip2-large-patch16-512",
    taps: list[int] | None = None,
    image_size: int | None = None,
    activation: Activation = "leaky_relu",
    stats: str | None = None,
) -> dict[str, object]:
    """{"tokenizer"} of the state of a VFM-VAE, on the frozen vision model of `start`, a folder or hub id.

    `taps` are its layers, [0, 12, -1] as released. The fixed noise of `legacy` checkpoints tells the size of images;
    without it that is 256, or `image_size`. `activation` is that of the code's maps. `stats` is the released
    latents_stats.pt, without which `encode_dataset` measures ours. Raises ValueError for keys or shapes that are not
    VFM-VAE's, or of a variant without ConvNeXt blocks or with text.
    """
    state = numbered(state)
    arguments = shapes(state, image_size) | {"activation": activation}
    size, patch, width = arguments.pop("image_size"), arguments.pop("patch"), arguments.pop("tapped")
    encoder = {"kind": "vision_transformer", "start": start, "image_patch": patch, "taps": taps or [0, 12, -1]}
    model = {"model": ENCODERS[width]} if width in ENCODERS else {}
    arguments["frozen_encoder"] = {**encoder, **model, "norm": "own", "resize": "bilinear", **COLOURS}
    tokenizer = build_component("tokenizers", {"kind": "pyramid", **arguments}, image_size=size)
    needed = tokenizer.state_dict()
    renamed = {name: in_shape(value, needed.get(name)) for name, value in rename(state, NAMES, DROPPED).items()}
    kept = {name: value for name, value in needed.items() if name.startswith("encoder.") or name in ("mean", "std")}
    tokenizer = fill(tokenizer, renamed | kept)
    return {"tokenizer": normalised(tokenizer, *read_statistics(stats)) if stats else tokenizer}


def numbered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys in which ConvNeXt blocks count from the first one of a level, and a code's layers are `first` and `last`.

    The latter stand behind or before the layer that folds channels, which has no weights and moves their numbers.
    """
    renumbered, places = {}, {}
    for key in state:
        if match := re.match(r"synthesis\.z_convs\.(\d+)\.(\d+)\.", key):
            places.setdefault(match[1], set()).add(int(match[2]))
    for key, value in state.items():
        key = re.sub(LEVEL + r"conv0\.", r"synthesis.blocks.\1.convs.0.", key)
        key = re.sub(LEVEL + r"convs1\.(\d+)\.", lambda m: f"synthesis.blocks.{m[1]}.convs.{int(m[2]) + 1}.", key)
        if match := re.match(r"(synthesis\.z_convs\.(\d+)\.)(\d+)(\..*)", key):
            place = "first" if int(match[3]) == min(places[match[2]]) else "last"
            key = f"{match[1]}{place}{match[4]}"
        renumbered[key] = value
    return renumbered


def shapes(state: Mapping[str, Tensor], image_size: int | None) -> dict[str, object]:
    """The constructor arguments of Pyramid that the keys and shapes imply; `patch` and `tapped` of the frozen one."""
    what = "VFM-VAE"
    moments = len(need(state, "ldm_adapter.final_quant.blocks.0.proj.weight", what))
    code_width, dim = need(state, "ldm_adapter.post_quant.blocks.0.proj.weight", what).shape
    taps = tally(state, r"ldm_adapter\.patch_quants\.(\d+)")
    projections = [
        need(state, f"ldm_adapter.patch_quants.{i}.0.blocks.0.proj.weight", what).shape for i in range(max(1, taps))
    ]
    narrow, levels = [shape[0] for shape in projections], tally(state, LEVEL)
    colours = [need(state, f"synthesis.blocks.{i}.torgb.weight", what) for i in range(levels)]
    reads = tally(state, r"synthesis\.z_convs\.(\d+)")
    mixes = [need(state, f"synthesis.z_convs.{i}.last.0.weight", what).shape for i in range(reads)]
    spatial, mixed = [mix[0] for mix in mixes], [mix[1] for mix in mixes]
    noise = "synthesis.blocks.0.convs.0.noise_const" in state
    first = len(state["synthesis.blocks.0.convs.0.noise_const"]) // 2 if noise else (image_size or 256) >> (levels - 1)
    folded = len(need(state, "synthesis.z_convs.0.first.0.weight", what)) / code_width
    side = round(first / 2 * math.sqrt(folded))
    joined = state["ldm_adapter.final_quant.blocks.0.proj.weight"].shape[1]
    size = first << (levels - 1)
    return {
        "image_size": size,
        "patch": size // (side * math.isqrt(joined // sum(narrow))),
        "tapped": projections[0][1],
        "bottleneck": {"kind": "gaussian" if moments == 2 * dim else "identity", "dim": dim},
        "side": side,
        "widths": [colour.shape[1] for colour in colours],
        "spatial": spatial,
        "mixed": None if mixed == spatial else mixed,
        "tap_widths": narrow,
        "code_width": code_width,
        "style": len(need(state, "mapping.mlp.fc1.weight", what)),
        "attention": [tally(state, rf"synthesis\.blocks\.{i}\.self_attns\.(\d+)") for i in range(levels)],
        "depths": [tally(state, rf"synthesis\.blocks\.{i}\.convs\.(\d+)") for i in range(levels)],
        "projection_layers": [tally(state, rf"ldm_adapter\.{name}_quant\.blocks\.(\d+)") for name in ("final", "post")],
        "blur": any(key.endswith("blur_weight") for key in state),
        "noise": noise,
    }


def tally(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers the group of a pattern has at the beginning of keys."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})
