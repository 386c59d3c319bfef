"""A tokenizer of any kind from its saved folder, for components that look up to another, frozen tokenizer."""

import json
from pathlib import Path

from pipeline.components import build, find, kinds
from pipeline.saved_folders import load_component
from pipeline.tokenizers.base import Tokenizer


def load_tokenizer(folder: str, where: str) -> Tokenizer:
    """The tokenizer in `folder`, frozen and in evaluation mode.

    Raises ValueError, naming the argument `where` it was stated, when the folder holds none or lacks weights.
    """
    config = Path(folder).expanduser() / "config.json"
    if not config.is_file():
        raise ValueError(
            f"{where}: {folder} holds no config.json; name the folder of a trained tokenizer, or of an imported one"
            " (python run.py import)"
        )
    name, classes = class_in(config.parent), own_classes()
    if name not in classes:
        raise ValueError(f"{where}: {folder} holds a {name}, which is not a tokenizer; there are: {', '.join(classes)}")
    return load_component(classes[name], config.parent).requires_grad_(False).eval()


def load_any(folder: Path, image_size: int) -> Tokenizer:
    """As `load_tokenizer`, or the stock autoencoder of diffusers in `folder`, for images of this size."""
    if class_in(folder) in own_classes():
        return load_tokenizer(str(folder), "card")
    node = {"kind": "pretrained", "path": str(folder)}
    return build("tokenizers", node, image_size=image_size).requires_grad_(False).eval()


def class_in(folder: Path) -> str | None:
    return json.loads((folder / "config.json").read_text()).get("_class_name")


def own_classes() -> dict[str, type[Tokenizer]]:
    return {cls.__name__: cls for cls in (find("tokenizers", kind) for kind in kinds("tokenizers"))}
