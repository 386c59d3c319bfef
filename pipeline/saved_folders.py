"""Saved folders of pipelines and components: fetching them, importing their code, loading weights that are complete."""

import hashlib
import importlib
import inspect
import os
import shutil
import sys
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import nn

from pipeline.components import build, classes_of
from pipeline.files.checksums import CHECKSUMS, NOTE, check_content, check_part, recorded_in, write_checksums
from pipeline.files.content import hash_files
from pipeline.files.paths import given_path, may_be_hub_id, without_paths
from pipeline.files.writing import read_json, set_modes_of_new, states_in, write_json
from pipeline.stored_weights import check_component, read_arguments_of, read_mapping
from pipeline.validation import NotHere, SettingError

INDEX = "model_index.json"
PARTS = ("tokenizer", "network", "objective")  # that every pipeline has
OPTIONAL = ("weak", "text_encoder")
PICKLES = ["*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl"]  # never downloaded: loading is safe
HUB_OPTIONS = ("cache_dir", "revision", "token", "local_files_only", "force_download")
REMOTE = "diffusers_modules."  # where diffusers puts code that came with a folder


def fetch(source: str | Path, options: dict[str, Any]) -> Path:
    """The folder of a local path or of a hub id, downloaded as a whole.

    Raises ValueError with one line when it is not there, or is no pipeline's folder.
    """
    folder = given_path(source)
    if not folder.is_dir():
        if not may_be_hub_id(source):
            raise ValueError(f"{source} is neither a folder nor a hub id (owner/name)")
        chosen = {name: options[name] for name in HUB_OPTIONS if name in options}
        folder = Path(snapshot_download(str(source), ignore_patterns=PICKLES, **chosen))
    if not (folder / INDEX).is_file():
        raise ValueError(f"{source} holds no {INDEX}, so it is not a pipeline; a run's pipeline/ folder is one")
    return folder


def import_components(folder: Path) -> None:
    """Import what model_index.json names below `pipeline.`, and nothing else; diffusers looks for it when loading."""
    for entry in read_index(folder).values():
        module = entry[0] if isinstance(entry, list) and entry else None
        if not isinstance(module, str) or not module.startswith("pipeline."):
            continue
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not module.startswith(str(error.name)):
                raise
            raise ValueError(f"{folder} needs {module}, which this version does not have; update it") from None


def check_folder(folder: Path, options: Mapping[str, Any]) -> None:
    """Import the code of a pipeline's folder that is ours; ValueError with one line where the folder cannot be loaded.

    `options` are those of `from_pretrained`: components given by name are not looked for.
    """
    refuse_pickles("use_safetensors", options.get("use_safetensors", True) is not False)
    check_components(folder)
    import_components(folder)
    check_parts(folder, options, options.get("variant"))


def refuse_pickles(name: str, safe: bool) -> None:
    """ValueError for the option `name` where it asks for pickled weights."""
    if not safe:
        raise ValueError(f"{name}=False: weights are saved and loaded as safetensors alone, for pickles may run code")


def check_parts(folder: Path, given: Container[str], variant: str | None) -> None:
    """ValueError unless the models in a pipeline's folder, but for those `given`, are of ours and fit their files."""
    index = read_index(folder)
    for part in (*PARTS, *OPTIONAL):
        module, name = index.get(part) or (None, None)
        if part in given or module is None:
            continue
        if module not in sys.modules:
            continue  # diffusers refuses it, or takes the code that came with the folder where it is trusted
        cls = getattr(sys.modules[module], str(name), None)
        if not (module.startswith("pipeline.") and inspect.isclass(cls) and issubclass(cls, ConfigMixin)):
            raise ValueError(f"{folder / INDEX}: {part} is {name} of {module}, which is no such part of a pipeline")
        if issubclass(cls, ModelMixin):
            check_component(cls, folder / part, variant)
        else:
            read_arguments_of(cls, folder / part / cls.config_name)


def read_index(folder: Path) -> dict[str, Any]:
    """What model_index.json says; ValueError that names it where it is not that of a pipeline."""
    index = read_mapping(folder / INDEX)
    wrong = [part for part in PARTS if not _is_pair(index.get(part)) or None in index[part]]
    wrong += [part for part in OPTIONAL if index.get(part) is not None and not _is_pair(index[part])]
    wrong += [name for name in ("id2label", "sampling", "text") if not isinstance(index.get(name) or {}, dict)]
    wrong += [] if all(map(str.isdecimal, index.get("id2label") or {})) else ["id2label"]
    wrong += [] if index.get("depth", 8) in (8, 16) else ["depth"]
    wrong += [] if index.get("_class_name") else ["_class_name"]
    if wrong:
        raise ValueError(f"{folder / INDEX} is damaged, or not that of a pipeline: its {wrong[0]} is not; get it again")
    return index


def _is_pair(entry: Any) -> bool:
    """Whether an entry is a module and a class, or null twice for a part that is left out."""
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and (entry == [None, None] or all(isinstance(e, str) for e in entry))
    )


@contextmanager
def naming_damage(folder: Path) -> Iterator[None]:
    """Say of which folder weights are that cannot be read."""
    try:
        yield
    except (SafetensorError, OSError, JSONDecodeError) as error:
        raise ValueError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:160]}; get it again") from None


def refuse_empty(module: Any) -> None:
    """ValueError for a part that is None, or whose weights were not in the files they were loaded from."""
    if module is None:
        raise ValueError("a pipeline needs a tokenizer, a network and an objective, and one of them is None")
    if not isinstance(module, nn.Module) or any(hasattr(part, "_hf_hook") for part in module.modules()):
        return  # an objective has none; accelerate keeps them elsewhere
    if empty := [name for name, weight in module.named_parameters() if weight.is_meta]:
        raise ValueError(f"{type(module).__name__} has no value for {empty[0]}; its folder is incomplete")


def load_component(cls: type, folder: Path) -> nn.Module:
    """A model of ours from its own folder, complete; ValueError when config, weights and record do not agree."""
    check_part(folder, "make it again, or get it again")
    check_component(cls, folder)
    with naming_damage(folder):
        return cls.from_pretrained(folder, use_safetensors=True)


def load_tokenizer(folder: str, where: str) -> nn.Module:
    """The tokenizer of any kind in `folder`, frozen and in evaluation mode.

    Raises ValueError, naming the argument `where` it was given, when the folder holds none or lacks weights.
    """
    path = given_path(folder)
    if not (path / "config.json").is_file():
        kind = SettingError if path.is_dir() else NotHere
        raise kind(
            where,
            f": {folder} holds no config.json; name the folder of a trained tokenizer, or of an imported one (python"
            " run.py import)",
        )
    name, classes = class_name(path), {cls.__name__: cls for cls in classes_of("tokenizers")}
    if name not in classes:
        raise ValueError(f"{where}: {folder} holds a {name}, which is not a tokenizer; there are: {', '.join(classes)}")
    return load_component(classes[name], path).requires_grad_(False).eval()


def load_tokenizer_or_stock(folder: Path, image_size: int | list[int], image_channels: int = 3) -> nn.Module:
    """As `load_tokenizer`, or the stock autoencoder of diffusers in `folder`, for such images."""
    if is_tokenizer(folder):
        return load_tokenizer(str(folder), "card")
    node = {"kind": "pretrained", "path": str(folder)}
    return build("tokenizers", node, image_size=image_size, image_channels=image_channels).requires_grad_(False).eval()


def is_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer of ours."""
    return class_name(folder) in {cls.__name__ for cls in classes_of("tokenizers")}


def class_name(folder: Path) -> str | None:
    """The class of the component that a folder holds, as its config names it."""
    return read_json(folder / "config.json").get("_class_name")


def forget_paths(*parts: ConfigMixin) -> None:
    """Take out of the configs of pipelines and models where things lay on this machine, before they are saved."""
    for part in parts:
        config = dict(part.config)
        if changed := {name: value for name, value in without_paths(config).items() if value != config[name]}:
            part.register_to_config(**changed)


def finish_saving(pipe: DiffusionPipeline, folder: Path, before: Mapping[Path, os.stat_result]) -> None:
    """Complete the `folder` that diffusers has saved `pipe` in; `before` are its files as they were.

    The code that came with the pipeline is copied, what is new gets ordinary modes, and what was written is recorded
    with its size and sha256.
    """
    copy_loaded_code(pipe, folder)
    set_modes_of_new(folder, before)
    written = [path for path, state in states_in(folder).items() if not same_file(state, before.get(path))]
    own = [folder / INDEX, *(folder / name for name in read_json(folder / INDEX) if (folder / name).is_dir())]
    chosen = [path for path in written if any(path.is_relative_to(part) for part in own)]
    write_checksums(folder, chosen, recorded_in(folder))


def same_file(state: os.stat_result, before: os.stat_result | None) -> bool:
    """Whether a file was not written since `before`."""
    kept = ("st_ino", "st_size", "st_mtime_ns")
    return before is not None and all(getattr(state, name) == getattr(before, name) for name in kept)


def check_components(folder: Path) -> None:
    """ValueError naming a file of a pipeline's folder that is not what was saved: its index, or one of a component."""
    remedy = "get the folder again; if you changed it on purpose, delete " + str(folder / CHECKSUMS)
    check_content(folder, remedy, lambda name: name == INDEX or name.count("/") == 1)


def copy_loaded_code(pipe: DiffusionPipeline, folder: Path) -> None:
    """Copy the code that `pipe` was loaded with into its new `folder`, where diffusers does not put it."""
    if not type(pipe).__module__.startswith(REMOTE):
        return
    index = read_json(folder / INDEX)
    index["_class_name"] = [_copy_code(type(pipe), folder), type(pipe).__name__]
    for part, module in pipe.components.items():
        if module is not None and type(module).__module__.startswith(REMOTE):
            index[part] = [_copy_code(type(module), folder / part), type(module).__name__]
    write_json(folder / INDEX, index, sort_keys=True)


def _copy_code(cls: type, folder: Path) -> str:
    file = Path(inspect.getsourcefile(sys.modules[cls.__module__]))
    shutil.copyfile(file, folder / file.name)
    return file.stem


def fingerprint_files(folder: Path) -> str:
    """A hash of what a folder's weights and configs hold; a new training changes it, a copy has the same.

    Where the folder records their sha256, that is what counts: who loads them compares it.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json"))
    names = [name for path in paths if (name := path.relative_to(folder).as_posix()) not in (NOTE, CHECKSUMS)]
    record = recorded_in(folder)
    if set(names) <= record.keys():
        return hashlib.sha256(repr([(name, record[name]["sha256"]) for name in names]).encode()).hexdigest()[:16]
    return hash_files(folder, names)[:16]
