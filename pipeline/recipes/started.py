"""What a recipe starts from: the folders of an earlier generator, and the settings that are left to them."""

from pathlib import Path
from typing import Any

from pipeline.code import LatentSpec
from pipeline.components import Arguments, Node, build, classes_of, constructor_parameters
from pipeline.files.paths import given_path
from pipeline.files.writing import read_json
from pipeline.recipes.derived import DERIVED
from pipeline.recipes.generator_training import JOINT, GeneratorTraining, Start
from pipeline.recipes.tokenizer_training import TokenizerTraining
from pipeline.validation import NotHere, SettingError

CONFIGS = ("config.json", "scheduler_config.json")  # of a model, and of an objective
OF_TOKENIZER = ("", "decoder", "latents/tokenizer", "joint", "tokenizer")  # of runs, the latest first, and pipelines
OF_NETWORK = ("", "network", "generator/network")  # where a network is, in what may be named as its folder


def find_network(start: Start) -> Path | None:
    """The folder of the network itself in the one that is named; None where there is none, and for `joint`."""
    folders = [] if start.folder == JOINT else [given_path(start.folder) / inner for inner in OF_NETWORK]
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def find_tokenizer(folder: str) -> str:
    """The folder of the tokenizer itself in the one that is named: of a run, or of what was published; else that."""
    folders = [given_path(folder) / inner for inner in OF_TOKENIZER]
    found = next((path for path in folders if (path / "config.json").is_file()), folders[0])
    return folder if found == folders[0] else str(found)


def find_tokenizer_of(network: Path) -> Path | None:
    """The folder of the tokenizer whose codes a network in a pipeline or in a run was trained on."""
    beside = network.parent
    folders = (beside / "tokenizer", beside.parent / "decoder", beside.parent / "latents" / "tokenizer")
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def find_old_tokenizer(start: Start) -> Path | None:
    """The folder of the tokenizer whose codes the network of `start` was trained on; None where there is none."""
    if start.tokenizer is None:
        network = find_network(start)
        return None if network is None else find_tokenizer_of(network)
    folder = given_path(find_tokenizer(start.tokenizer))
    return folder if (folder / "config.json").is_file() else None


def find_position_grid(start: Start | None, spec: LatentSpec) -> list[int] | None:
    """The grid that positions are counted on by a network which starts from another; None: on that of its codes.

    SettingError where the positions of one axis were to be stretched to two.
    """
    folder = None if start is None else find_network(start)
    if folder is None or "positions" in start.reinitialise:
        return None
    config = read_json(folder / "config.json")
    grid = config.get("position_grid") or (config.get("grid") if start.resample else None)
    if grid is None or list(grid) == list(spec.grid):
        return None
    if len(grid) != len(spec.grid):
        raise SettingError(
            "generator.start.resample",
            f": positions on a grid {grid} have no places on {list(spec.grid)}; name them in reinitialise instead",
        )
    return list(grid)


def complete(tokenizer: TokenizerTraining, generator: GeneratorTraining | None) -> None:
    """Fill in the tokenizer, the network and the objective that a recipe leaves to what it starts from.

    SettingError where one is left out and the folder that has it is not named, or not there.
    """
    if tokenizer.start is not None:
        tokenizer.start = find_tokenizer(tokenizer.start)
    if generator is not None and not (generator.network and generator.objective):
        complete_generator(generator)
    if not tokenizer.model:
        complete_tokenizer(tokenizer, None if generator is None else generator.start)


def complete_generator(generator: GeneratorTraining) -> None:
    network = None if generator.start is None else find_network(generator.start)
    for name in ("network", "objective"):
        if getattr(generator, name):
            continue
        place = f"generator.{name}"
        if generator.start is None:
            raise SettingError(place, " is missing; state it in the recipe, or a folder that has it as generator.start")
        if network is None:
            raise NotHere(
                "generator.start.folder",
                f": there is no network in {generator.start.folder}; name the folder of a run, of its generator, of a"
                " pipeline, or of an imported network",
            )
        setattr(generator, name, read_node(f"{name}s", network if name == "network" else network.parent / name, place))
        if name == "objective":
            terms = build("objectives", generator.objective).terms
            generator.weights = dict.fromkeys(terms, 1.0) | generator.weights


def complete_tokenizer(tokenizer: TokenizerTraining, start: Start | None) -> None:
    folder = None if tokenizer.start is None else given_path(tokenizer.start)
    if folder is None and start is not None and (network := find_network(start)) is not None:
        folder = find_tokenizer_of(network)
    if folder is None:
        raise SettingError(
            "tokenizer.model", " is missing; state it in the recipe, or a folder that has it as tokenizer.start"
        )
    tokenizer.model = read_node("tokenizers", folder, "tokenizer.model")
    tokenizer.start = str(folder)


def read_node(slot: str, folder: Path, place: str) -> Node:
    """The component saved in a folder as a recipe names it, with the arguments that are not by default.

    NotHere, which names the `place` in the recipe, where there is none; ValueError where it is none of the slot.
    """
    file = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    if file is None:
        raise NotHere(
            place, f" is missing, and {folder} holds no config; state it, or name another folder to start from"
        )
    stored: dict[str, Any] = read_json(file)
    classes = {cls.__name__: cls for cls in classes_of(slot)}
    if (cls := classes.get(stored.get("_class_name"))) is None:
        raise SettingError(place, f": {folder} holds a {stored.get('_class_name')}, which is none of the {slot} here")
    defaults = Arguments.complete(cls, {})
    free = [name for name in constructor_parameters(cls) if name not in DERIVED[slot] and name in stored]
    node = {name: stored[name] for name in free if name not in defaults or defaults[name] != stored[name]}
    return {"kind": cls.__module__.rpartition(".")[2]} | node
