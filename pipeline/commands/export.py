"""The command `export`: the models of a run or a published folder as folders that load alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusers import ModelMixin

from pipeline.captions.table import ENCODER
from pipeline.components import classes_of, structure
from pipeline.files.paths import given_path
from pipeline.files.writing import new_folder, read_json
from pipeline.publishing.stock import FOLDERS, save_stock, write_stock
from pipeline.recipes.files import parse_settings
from pipeline.runs.finished import run_folder, tokenizer_of
from pipeline.runs.workspace import NOTE
from pipeline.saved_folders import forget_paths, load_component
from pipeline.validation import SettingError


@dataclass(frozen=True)
class SavedPart:
    """How a part of a line lies in a folder of its own."""

    slot: str
    config: str  # the file that names its class

    def class_in(self, folder: Path) -> type | None:
        """The class of ours that the folder holds; None where it holds none."""
        config = folder / self.config
        name = read_json(config).get("_class_name") if config.is_file() else None
        return next((cls for cls in classes_of(self.slot) if cls.__name__ == name), None)

    def load(self, folder: Path) -> Any:
        """The part in a folder that holds one; an objective has no weights."""
        cls = self.class_in(folder)
        return load_component(cls, folder) if issubclass(cls, ModelMixin) else cls.from_pretrained(folder)


PARTS = {
    "tokenizer": SavedPart("tokenizers", "config.json"),
    "network": SavedPart("networks", "config.json"),
    "objective": SavedPart("objectives", "scheduler_config.json"),
    "text_encoder": SavedPart("text_encoders", "config.json"),
}
Part = Literal["tokenizer", "network", "objective", "text_encoder", "vae", "transformer"]


@dataclass
class ExportSettings:
    """What `run.py export` takes."""

    part: Part | None = None  # this one alone, in OUT itself; null: all that there are, each in a folder of OUT


def export(words: list[str]) -> None:
    """Write the models of FOLDER, a run, one of its artefacts or what was published, into folders that load alone.

    OUT holds tokenizer/, network/, objective/ and text_encoder/, as far as FOLDER has them, which load by our
    `from_pretrained`; and for those that a class of diffusers can compute vae/ and transformer/, which load by that
    class. With part=vae, or another of these names, OUT is that folder itself. It is written whole or not at all.
    """
    if len(words) < 2:
        raise ValueError("export needs FOLDER and OUT, for example: export runs/digits exported")
    out, settings = given_path(words[1]), structure(ExportSettings, parse_settings(words[2:]))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty; name a folder that is empty or does not exist")
    models = {part: PARTS[part].load(folder) for part, folder in find_parts(words[0]).items()}
    forget_paths(*models.values())
    with new_folder(out) as draft:
        lines = write_all(models, draft) if settings.part is None else write_one(models, settings.part, draft)
    for folder, text in lines.items():
        print(f"{out / folder}: {text}")


def find_parts(source: str) -> dict[str, Path]:
    """Where the models of a run, or those in a folder, lie; ValueError where there are none."""
    run = run_folder(source)
    if run is not None and (run / "tokenizer" / NOTE).is_file():  # what was published has a recipe, too, and no notes
        encoder = run / "text" / ENCODER
        text = {"text_encoder": encoder} if PARTS["text_encoder"].class_in(encoder) is not None else {}
        return {"tokenizer": tokenizer_of(run)} | parts_below(run / "generator") | text
    folder = given_path(source)
    alone = {part: folder for part, saved in PARTS.items() if saved.class_in(folder) is not None}
    if parts := alone or parts_below(folder):
        return parts
    raise ValueError(f"{source} is neither a run nor a folder with a tokenizer, a network or an objective of ours")


def parts_below(folder: Path) -> dict[str, Path]:
    """The parts that have a folder of their name below this one."""
    return {part: folder / part for part, saved in PARTS.items() if saved.class_in(folder / part) is not None}


def write_all(models: Mapping[str, Any], out: Path) -> dict[str, str]:
    """Write every part and the stock classes there are; returns a line for each folder."""
    lines = {part: save_part(model, out / part) for part, model in models.items()}
    stock = write_stock({part: model for part, model in models.items() if part in FOLDERS}, out)
    for refusal in stock.refusals:
        print(refusal)
    return lines | stock.written


def write_one(models: Mapping[str, Any], chosen: str, out: Path) -> dict[str, str]:
    """Write one part, or the stock class of one, into `out` itself; ValueError where there is none."""
    stock_of = {folder: part for part, folder in FOLDERS.items()}
    part = stock_of.get(chosen, chosen)
    if part not in models:
        raise SettingError("part", f"={chosen}: there is no {part} here; there are: {', '.join(models)}")
    save = save_stock if chosen in stock_of else save_part
    return {"": save(models[part], out)}


def save_part(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    cls = type(model)
    return f"`{cls.__name__}` of {cls.__module__}"
