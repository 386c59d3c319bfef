"""Sizes of published vision models, as their config.json states them: known also where their weights are not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.vision.backbone import read_config
from pipeline.vision.weights import KNOWN, Folder, locate_model

SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
DINOV2 = {"model_type": "dinov2", "patch_size": 14, "image_size": 518}
DINOV3 = {"model_type": "dinov3_vit", "patch_size": 16, "image_size": 224, "num_register_tokens": 4}
DINO = {"model_type": "vit", "image_size": 224}
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {  # by the model's id on the hub
    "facebook/dinov2-base": {n: v for n, v in BASE.items() if n != "intermediate_size"} | DINOV2,
    "facebook/dinov2-large": {n: v for n, v in LARGE.items() if n != "intermediate_size"} | DINOV2,
    "facebook/dinov3-vits16-pretrain-lvd1689m": SMALL | DINOV3,
    "facebook/dinov3-vitb16-pretrain-lvd1689m": BASE | DINOV3,
    "facebook/dinov3-vitl16-pretrain-lvd1689m": LARGE | DINOV3,
    "facebook/dino-vits16": SMALL | DINO | {"patch_size": 16},
    "facebook/dino-vits8": SMALL | DINO | {"patch_size": 8},
    "facebook/vit-mae-large": LARGE | {"model_type": "vit_mae", "patch_size": 16, "image_size": 224},
    "google/siglip2-large-patch16-512": LARGE
    | {"model_type": "siglip_vision_model", "patch_size": 16, "image_size": 512},
}


def architecture(teacher: str, weights: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The config of the model that a recipe names: of its folder, else as published; None where neither is known."""
    known = KNOWN.get(teacher)
    hub_id = known.hub_id if isinstance(known, Folder) else teacher
    folder: Path | None = None
    if known is None:
        folder = locate_model(teacher, weights, "teacher")
    elif teacher in weights:
        folder = Path(weights[teacher])
    if folder is not None and (folder / "config.json").is_file():
        return read_config(folder)
    return ARCHITECTURES.get(hub_id)
