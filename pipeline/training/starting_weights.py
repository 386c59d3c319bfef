"""Weights that a training starts from: the folder of an imported, or of an earlier trained, component."""

import json
from pathlib import Path
from typing import Any, TypeVar

from diffusers import ModelMixin

from pipeline.saved_folders import INDEX, fingerprint_files, load_component
from pipeline.whole_files import read_json

Model = TypeVar("Model", bound=ModelMixin)


def load_start(model: Model, folder: str | None, where: str) -> Model:
    """`model` with the weights in `folder`, of the same class and arguments; without a folder as it is.

    Raises ValueError with one line that names the place in the recipe (`where`) and what differs.
    """
    if folder is None:
        return model
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ValueError(f"{where}: {folder} holds no config.json; name the folder of a saved {type(model).__name__}")
    stored = read_json(path / "config.json")
    if stored["_class_name"] != type(model).__name__:
        raise ValueError(f"{where}: {folder} holds a {stored['_class_name']}, the recipe a {type(model).__name__}")
    given = json.loads(model.to_json_string())
    for name in sorted(set(given) & set(stored) - set(model.run_arguments)):
        if not name.startswith("_") and differ(given[name], stored[name]):
            raise ValueError(f"{where}: {folder} was made with {name} {stored[name]}, the recipe has {given[name]}")
    weights, needed = load_component(type(model), path).state_dict(), model.state_dict()
    for name in needed:
        if weights[name].shape != needed[name].shape:
            sizes = [list(values[name].shape) for values in (weights, needed)]
            raise ValueError(f"{where}: {name} is {sizes[0]} in {folder} and {sizes[1]} under this recipe")
    model.load_state_dict(weights)
    return model


def differ(config: Any, stored: Any) -> bool:
    """Whether two values of an argument differ; of nested nodes, where both state one."""
    if isinstance(config, dict) and isinstance(stored, dict):
        return any(differ(config[name], stored[name]) for name in set(config) & set(stored))
    return config != stored


def fingerprints(part: Any) -> dict[str, str]:
    """A hash of every folder of weights that a part of a recipe names, wherever it does: results depend on them."""
    if isinstance(part, str):
        known = [name for name in ("config.json", "network/config.json", INDEX) if Path(part, name).is_file()]
        return {part: fingerprint_files(Path(part))} if known else {}
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    return {folder: value for one in inner for folder, value in fingerprints(one).items()}
