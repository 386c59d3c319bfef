"""Folders of stock diffusers classes, for those models of a line that have one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.files.writing import write_text
from pipeline.networks.base import Network
from pipeline.tokenizers.base import Tokenizer

FOLDERS = {"tokenizer": "vae", "network": "transformer"}  # as pipelines of diffusers name them


@dataclass
class StockFolders:
    """What was written of stock classes."""

    written: dict[str, str] = field(default_factory=dict)  # by folder: the class, and what there is to know of it
    refusals: list[str] = field(default_factory=list)  # why a model has no stock class


def write_stock(models: Mapping[str, Tokenizer | Network], out: Path) -> StockFolders:
    """Write a folder in `out` for each of the models, by what it is in the line, that has a stock class."""
    folders = StockFolders()
    for part, model in models.items():
        try:
            model.check_stock()
        except ValueError as refusal:
            folders.refusals.append(str(refusal))
        else:
            folders.written[FOLDERS[part]] = save_stock(model, out / FOLDERS[part])
    return folders


def save_stock(model: Tokenizer | Network, folder: Path) -> str:
    """Write the stock class of a model into `folder`; returns a line about it. ValueError where it has none."""
    stock = model.stock()
    stock.model.save_pretrained(folder)
    write_text(folder / "README.md", f"{stock.note}\n")
    first = " ".join(stock.note.partition(". ")[0].split()).rstrip(".")
    return f"`{type(stock.model).__name__}` of diffusers. {first}."
