"""Whether a folder of weights that a training starts from fits the model of the recipe, known from its headers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from safetensors import safe_open

from pipeline.files.writing import read_json
from pipeline.networks.base import ARGUMENTS, Network, Part
from pipeline.nn.conditions import NO_TEXT
from pipeline.recipes.building import TokenizerPlan
from pipeline.recipes.generator_training import Start
from pipeline.recipes.schema import Recipe
from pipeline.recipes.started import find_network
from pipeline.stored_weights import read_stored
from pipeline.validation import SettingError

REMEDIES: dict[Part, str] = {  # what lets a network start from one that has another part
    "labels": "add reinitialise: [labels]",
    "text": "keep its text encoder and generator.condition, or add reinitialise: [text]",
    "positions": "add resample: [positions]",
    "codes": "keep its tokenizer and its objective, or add reinitialise: [codes]",
}
OTHER_CODES = "keep its tokenizer, or add transplant: weighted, or reinitialise: [codes]"  # of another number


def check_start(model: ModelMixin, folder: str, where: str) -> None:
    """ValueError where `folder` holds another model than `model`, which may be on the meta device.

    Its config and the shapes of its weights are read. The line says what differs, and `where` the recipe names it.
    """
    path = Path(folder)
    stored, given = check_folder(type(model).__name__, path, where), json.loads(model.to_json_string())
    for name in sorted(set(given) & set(stored) - set(model.run_arguments)):
        if not name.startswith("_") and differ(given[name], stored[name]):
            raise ValueError(f"{where}: {folder} was made with {name} {stored[name]}, the recipe has {given[name]}")
    check_shapes(model, path, where)


def check_network_start(network: Network, start: Start) -> None:
    """ValueError where `network`, which may be on the meta device, cannot start as the recipe says.

    The line says what differs and what to add to the recipe.
    """
    place, folder = "generator.start", find_network(start)
    if folder is None:
        raise ValueError(f"{place}: {start.folder} holds no network; name the folder of a {type(network).__name__}")
    stored, given = check_folder(type(network).__name__, folder, place), json.loads(network.to_json_string())
    stored = NO_TEXT | stored  # one of before there were captions reads none
    apart = (*start.reinitialise, *start.resample)
    parts = {name: part for part, names in ARGUMENTS.items() for name in names}
    for name in sorted(set(given) & set(stored), key=lambda name: (name not in parts, name)):
        if name.startswith("_") or name in network.run_arguments or parts.get(name) in apart:
            continue
        if name == "vocab" and start.transplant is not None:
            continue
        if differ(given[name], stored[name]):
            remedy = REMEDIES[parts[name]] if name in parts else f"set generator.network.{name}={stored[name]}"
            remedy = OTHER_CODES if name == "vocab" and network.code_tables else remedy
            what = name.replace("num_", "").replace("_", " ")
            raise ValueError(
                f"{place}: the network in {folder} has {what} {stored[name]}, the recipe {given[name]}; {remedy}"
            )
    transplanted = start.transplant is not None
    check_shapes(
        network,
        folder,
        place,
        lambda name: network.is_of(name, apart) or transplanted and network.table_of(name) is not None,
    )


def check_shapes(
    model: ModelMixin, folder: Path, where: str, apart: Callable[[str], bool] = lambda name: False
) -> None:
    """ValueError where a weight in `folder` has another shape than in `model`, but for those `apart` by their names."""
    stored = {name: list(shape) for name, shape in read_stored(folder).shapes.items()}
    for name, weight in model.state_dict().items():
        if name in stored and stored[name] != list(weight.shape) and not apart(name):
            raise ValueError(
                f"{where}: {name} is {stored[name]} in {folder} and {list(weight.shape)} under this recipe"
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
