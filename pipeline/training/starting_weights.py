"""Weights that a training starts from: the folder of an imported, or of an earlier trained, component."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from diffusers import ModelMixin
from torch import Tensor

from pipeline.checks.starting_weights import check_network_start, check_start
from pipeline.networks.base import Network
from pipeline.recipes.generator_training import Start
from pipeline.recipes.started import find_network
from pipeline.saved_folders import INDEX, fingerprint_files, load_component

Model = TypeVar("Model", bound=ModelMixin)
MakeTables = Callable[[Network, Network], dict[str, Tensor]]  # the network, and the stored one -> weights by name


def load_start(model: Model, folder: str | None, where: str) -> Model:
    """`model` with the weights in `folder`, of the same class and arguments; without a folder as it is.

    Raises ValueError with one line that names the place in the recipe (`where`) and what differs.
    """
    if folder is None:
        return model
    check_start(model, folder, where)
    model.load_state_dict(load_component(type(model), Path(folder)).state_dict())
    return model


def start_network(network: Network, start: Start, make_tables: MakeTables | None = None) -> None:
    """Give `network` the weights that it starts from; parts that are drawn anew keep those that they have.

    `make_tables` gives the tables of codes that are not those of the stored network. Raises ValueError with one line
    that says what does not fit, and what to add to the recipe.
    """
    check_network_start(network, start)
    stored = load_component(type(network), find_network(start))
    tables = None if make_tables is None else make_tables(network, stored)
    network.begin_from(stored, start.reinitialise, start.resample, tables)


def fingerprints(part: Any) -> dict[str, str]:
    """A hash of every folder of weights that a part of a recipe names, wherever it does: results depend on them."""
    if isinstance(part, str):
        known = [name for name in ("config.json", "network/config.json", INDEX) if Path(part, name).is_file()]
        return {part: fingerprint_files(Path(part))} if known else {}
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    return {folder: value for one in inner for folder, value in fingerprints(one).items()}
