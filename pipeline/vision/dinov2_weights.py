"""DINOv2's published weights: read safely, and resampled to other patches and another grid of them."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.nn.dinov2 import Dinov2
from pipeline.vision.backbone import difference, read_config
from pipeline.vision.weights import OF_A_FOLDER, locate_model, require_model

FIXED = {  # what `Dinov2` cannot be otherwise, by the name in config.json
    "model_type": "dinov2",
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
LAYERS = {  # of a block, where weight and bias are stored
    "norm1": "norm1",
    "attention.proj": "attention.output.dense",
    "norm2": "norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def start_from(vit: Dinov2, source: str, where: str) -> None:
    """Give `vit` the weights of `source`: a folder or hub id in transformers' format, as facebook/dinov2-base.

    Raises ValueError, naming the argument `where` it was stated, for another model, another size, and keys that are
    missing or unknown.
    """
    file = require_model(source, {}, where) / OF_A_FOLDER[1]
    if not file.is_file():
        raise ValueError(f"{where}: {source} holds no {file.name}; name a DINOv2 in transformers' format")
    state = convert(load_file(file), len(vit.blocks), f"{where}: {source}")
    state["positions"] = resampled_positions(state["positions"], math.isqrt(len(vit.positions) - 1))
    if vit.patch_embedding is None:
        state = {name: value for name, value in state.items() if not name.startswith("patch_embedding.")}
    else:
        name = "patch_embedding.weight"
        state[name] = resampled_kernel(state[name], vit.patch_embedding.kernel_size[0])
    for name, value in vit.state_dict().items():
        if value.shape != state[name].shape:
            raise ValueError(
                f"{where}: {name} is {list(state[name].shape)} in {source} and {list(value.shape)} in the recipe"
            )
    vit.load_state_dict(state)


def check_config(source: str, sizes: Mapping[str, int], where: str) -> None:
    """ValueError where a model that is on this machine is another than a `Dinov2` of these sizes.

    `sizes` are hidden_size, num_hidden_layers and num_attention_heads. A model of the hub is not fetched for that.
    """
    folder = locate_model(source, {}, where)
    if folder is None:
        return
    file = folder / OF_A_FOLDER[0]
    if not file.is_file():
        raise ValueError(f"{where}: {source} holds no {file.name}; name a DINOv2 in transformers' format")
    config, expected = read_config(folder), FIXED | dict(sizes)
    if name := difference(config, expected):
        raise ValueError(f"{where}: {source} has {name} {config[name]}, here it is {expected[name]}")


def convert(state: Mapping[str, Tensor], depth: int, what: str) -> dict[str, Tensor]:
    """A state of transformers' Dinov2Model under the names of `Dinov2`, in float32; its mask token is dropped.

    Raises ValueError, beginning with `what`, for keys that are missing or unknown.
    """
    unread = {name: value.float() for name, value in state.items()}

    def take(name: str) -> Tensor:
        if name not in unread:
            raise ValueError(f"{what} has no {name}; it is not a DINOv2 of {depth} blocks")
        return unread.pop(name)

    converted = {
        "class_token": take("embeddings.cls_token")[0],
        "positions": take("embeddings.position_embeddings")[0],
    }
    for kind in ("weight", "bias"):
        converted[f"patch_embedding.{kind}"] = take(f"embeddings.patch_embeddings.projection.{kind}")
        converted[f"norm.{kind}"] = take(f"layernorm.{kind}")
        for ours, theirs in ((f"blocks.{i}", f"encoder.layer.{i}") for i in range(depth)):
            parts = [take(f"{theirs}.attention.attention.{part}.{kind}") for part in ("query", "key", "value")]
            converted[f"{ours}.attention.qkv.{kind}"] = torch.cat(parts)
            converted |= {f"{ours}.{new}.{kind}": take(f"{theirs}.{old}.{kind}") for new, old in LAYERS.items()}
    for i in range(depth):
        converted |= {f"blocks.{i}.scale{n}": take(f"encoder.layer.{i}.layer_scale{n}.lambda1") for n in (1, 2)}
    unread.pop("embeddings.mask_token", None)  # the pretraining's own
    if unread:
        names = ", ".join(sorted(unread)[:3])
        raise ValueError(f"{what} has {len(unread)} weights that this transformer lacks: {names}")
    return converted


@torch.no_grad()
def resample_patches(model: nn.Module, patch: int, side: int) -> None:
    """Make transformers' Dinov2Model read `side` x `side` patches of `patch` pixels per side.

    Kernel and positions are resampled as in `start_from`.
    """
    embeddings = model.embeddings
    layer, positions = embeddings.patch_embeddings, embeddings.position_embeddings
    kernel = resampled_kernel(layer.projection.weight, patch)
    projection = nn.Conv2d(kernel.shape[1], kernel.shape[0], patch, stride=patch)
    projection.load_state_dict({"weight": kernel, "bias": layer.projection.bias})
    layer.projection, layer.patch_size, layer.num_patches = projection, (patch, patch), side**2
    embeddings.position_embeddings = nn.Parameter(resampled_positions(positions[0], side)[None])
    embeddings.patch_size = model.config.patch_size = patch
    model.config.image_size = patch * side


def resampled_kernel(kernel: Tensor, size: int) -> Tensor:
    """A patch embedding's kernel [width, 3, p, p] for patches of `size` pixels per side, [width, 3, size, size].

    Beyer et al., arXiv:2212.08013, section 3.4: with B the matrix that resizes a patch (bicubic, antialiased), it is
    the pseudo-inverse of B^T times the kernel, so that an enlarged patch gives the same features. This is
    what timm does when it loads weights of another patch size, as the authors of RobusTok let it.
    """
    if kernel.shape[-1] == size:
        return kernel
    sides = kernel.shape[2:]
    pixels = torch.eye(sides.numel(), dtype=torch.float64).unflatten(1, (1, *sides))
    resized = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).flatten(1)  # B^T
    resampled = kernel.double().flatten(2) @ torch.linalg.pinv(resized).T
    return resampled.unflatten(2, (size, size)).to(kernel.dtype)


def resampled_positions(positions: Tensor, side: int) -> Tensor:
    """Positions [1 + n, width] of a class token and a square grid, for a grid of `side` x `side`: bicubic, antialiased.

    As timm resamples them on loading; transformers, which does so in every pass, has no antialiasing.
    """
    old = math.isqrt(len(positions) - 1)
    if old == side:
        return positions
    grid = positions[1:].T.unflatten(1, (old, old))[None]  # [1, width, old, old]
    grid = F.interpolate(grid, (side, side), mode="bicubic", antialias=True)
    return torch.cat([positions[:1], grid[0].flatten(1).T])
