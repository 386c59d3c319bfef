"""Whether a folder of weights that a training starts from fits the model of the recipe, known from its headers."""

import json
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from safetensors import safe_open

from pipeline.files.writing import read_json
from pipeline.recipes.building import TokenizerPlan
from pipeline.recipes.schema import Recipe
from pipeline.stored_weights import read_stored
from pipeline.validation import SettingError


def check_start(model: ModelMixin, folder: str, where: str) -> None:
    """ValueError where `folder` holds another model than `model`, which may be on the meta device.

    Its config and the shapes of its weights are read. The line says what differs, and `where` the recipe names it.
    """
    path = Path(folder)
    stored, given = check_folder(type(model).__name__, path, where), json.loads(model.to_json_string())
    for name in sorted(set(given) & set(stored) - set(model.run_arguments)):
        if not name.startswith("_") and differ(given[name], stored[name]):
            raise ValueError(f"{where}: {folder} was made with {name} {stored[name]}, the recipe has {given[name]}")
    stored_shapes = {name: list(shape) for name, shape in read_stored(path).shapes.items()}
    for name, weight in model.state_dict().items():
        if name in stored_shapes and stored_shapes[name] != list(weight.shape):
            raise ValueError(
                f"{where}: {name} is {stored_shapes[name]} in {folder} and {list(weight.shape)} under this recipe"
            )


def check_statistics(recipe: Recipe, tokenizer: TokenizerPlan) -> None:
    """ValueError where codes are to have the mean and std that the tokenizer came with, and it came with none."""
    start = recipe.tokenizer.start
    if recipe.latents.scale is not None and (recipe.joint is not None or tokenizer.spec.vocab):
        why = "ids have no scale" if tokenizer.spec.vocab else "joint training finds that of its codes"
        raise SettingError("latents.scale", f" is stated, and {why}; leave it out")
    if recipe.latents.statistics == "measured" or recipe.joint is not None or tokenizer.spec.vocab:
        return
    if start is None:
        if tokenizer.cls.brings_statistics(tokenizer.arguments) is not False:
            return
        raise SettingError(
            "latents.statistics",
            " is stored, and the tokenizer comes with no mean and std of its codes; set it to measured, or"
            " tokenizer.start=FOLDER of one that does, or latents.scale",
        )
    for file in Path(start).glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            moments = [tensors.get_tensor(name) for name in ("mean", "std") if name in set(tensors.keys())]
        if len(moments) == 2 and not moments[0].any() and (moments[1] == 1).all():
            raise SettingError("latents.statistics", f" is stored, and {start} holds none; set it to measured")


def check_folder(kind: str, folder: Path, where: str) -> dict[str, Any]:
    """The config of the model in `folder`; ValueError where it is none of the class `kind`."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{where}: {folder} holds no config.json; name the folder of a saved {kind}")
    stored = read_json(folder / "config.json")
    if stored.get("_class_name") != kind:
        raise ValueError(f"{where}: {folder} holds a {stored.get('_class_name')}, the recipe a {kind}")
    return stored


def differ(config: Any, stored: Any) -> bool:
    """Whether two values of an argument differ; of nested nodes, where both state one."""
    if isinstance(config, dict) and isinstance(stored, dict):
        return any(differ(config[name], stored[name]) for name in set(config) & set(stored))
    return config != stored
