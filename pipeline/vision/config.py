"""What the config.json of one of transformers' vision models says of it, read without its weights."""

import json
from pathlib import Path
from typing import Any

FILE = "config.json"
HALF = "_vision_model"  # how `model_type` of an image half ends


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a vision model, or of the image half of a larger one; ValueError where there is none."""
    if not (folder / FILE).is_file():
        raise ValueError(f"{folder} holds no {FILE}; name the folder of one of transformers' vision models")
    whole = json.loads((folder / FILE).read_text())
    if "vision_config" not in whole:
        return whole
    return {"model_type": f"{whole['model_type']}{HALF}"} | whole["vision_config"]


def read_kind(folder: Path, kind: str | None = None) -> str:
    """`model_type` of the model in `folder`, or of the one that it is half of; ValueError unless it is `kind`."""
    found = read_config(folder).get("model_type", "nameless").removesuffix(HALF)
    if kind not in (None, found):
        raise ValueError(f"{folder} holds a {found}, not a {kind}; name the folder of one")
    return found


def read_depth(folder: Path) -> int | None:
    """Blocks of the transformer; None for a model that is none."""
    return read_config(folder).get("num_hidden_layers")


def read_width(folder: Path) -> int:
    """Channels of the last hidden state."""
    config = read_config(folder)
    return config["hidden_size"] if "hidden_size" in config else config["hidden_sizes"][-1]
