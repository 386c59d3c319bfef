"""What the weight files of a folder hold, read from their headers, and whether a config asks for that and no more.

A config from elsewhere may state any size. A model is built on the meta device first, within the limits of what is
stored, so that no memory is asked for that the files do not fill.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules import module as modules

from pipeline.components import conform_arguments, constructor_parameters
from pipeline.files.writing import read_json
from pipeline.validation import at

CONFIG = "config.json"
OWN_VARIANT = "tessera"  # in the names of our models' weight files, see pipeline.nn.own_weight_files
SPARE_TENSORS, SPARE_ELEMENTS = 256, 2**24  # beyond twice what is stored: tied weights, and tables that are not saved
LARGEST = 2**24
NOT_BUILT = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Stored:
    """The tensors in the weight files of a folder: their shapes by name, or of pickles the bytes alone."""

    folder: Path
    shapes: dict[str, tuple[int, ...]]
    bytes: int = 0

    @property
    def elements(self) -> int:
        return sum(map(prod, self.shapes.values())) + self.bytes


def read_stored(folder: Path, variant: str | None = None) -> Stored:
    """What the safetensors files of this variant hold, of the files without a variant where it has none.

    ValueError naming a file whose header is damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder, variant) or weight_files(folder, None):
        try:
            with safe_open(file, framework="pt") as tensors:
                names = tensors.keys()
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged ({_line(error)}); get it again") from None
    return Stored(folder, shapes)


def read_sizes(folder: Path, pickled: str) -> Stored:
    """As `read_stored`; where there are no such files, the size of the pickle of this name, which is not opened."""
    stored, file = read_stored(folder), folder / pickled
    return stored if stored.shapes or not file.is_file() else Stored(folder, {}, file.stat().st_size)


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """A component's safetensors files of this variant, or those without one, of ours and of diffusers alike."""
    infix = f"\\.{re.escape(variant)}" if variant else rf"(\.{OWN_VARIANT})?"
    name = re.compile(rf"[^.]+{infix}(-\d+-of-\d+)?\.safetensors")
    return sorted(file for file in folder.iterdir() if name.fullmatch(file.name)) if folder.is_dir() else []


def check_component(cls: type[nn.Module], folder: Path, variant: str | None = None) -> None:
    """ValueError with one line unless the folder's config builds a `cls` whose weights are those in its files.

    Named are a file that is damaged, an argument that is wrong, and a weight that is missing or of another shape.
    """
    arguments, stored = read_arguments_of(cls, folder / CONFIG), read_stored(folder, variant)
    model = build_on_meta(lambda: cls(**arguments), stored)
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if missing := sorted(set(needed) - set(stored.shapes)):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{folder} lacks {missing[0]}{more}; the folder is incomplete or of another version")
    for name, shape in needed.items():
        if shape != stored.shapes[name]:
            stored_shape = list(stored.shapes[name])
            raise ValueError(
                f"{folder}: {name} is {stored_shape} in its file, and {list(shape)} by its {CONFIG}; get it again"
            )


def read_arguments_of(cls: type, config: Path) -> dict[str, Any]:
    """The arguments of the constructor of `cls` in a saved config; ValueError, naming the file, where one is wrong."""
    content, known = read_mapping(config), constructor_parameters(cls)
    if content.get("_class_name") != cls.__name__:
        raise ValueError(f"{config} is of a {content.get('_class_name')}, and not of a {cls.__name__}; get it again")
    node = {name: value for name, value in content.items() if name in known}  # others are of another version
    with at(str(config)):
        check_numbers(node)
    return conform_arguments(cls, {"kind": cls.__name__} | node, (), str(config))


def read_mapping(file: Path) -> dict[str, Any]:
    """The mapping that a JSON file holds; ValueError that names the file where it holds none."""
    if not file.is_file():
        raise ValueError(f"there is no file {file}; the folder is incomplete, get it again")
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it holds no mapping; get it again")
    return content


def check_numbers(value: Any) -> None:
    """ValueError for a whole number that is no size of a model: a list as long may be made before the first module."""
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"it holds the number {value:.0e}, and no size of a model is above {LARGEST:,}")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_numbers(inner)


def build_on_meta(build: Callable[[], nn.Module], stored: Stored) -> nn.Module:
    """The module without its weights; ValueError where it cannot be built, or needs far more than is stored."""
    try:
        with torch.device("meta"), limited(stored), torch.no_grad():
            return build()
    except NOT_BUILT as error:
        raise ValueError(f"{stored.folder}: its {CONFIG} does not fit its weights: {_line(error)}") from None


@contextmanager
def limited(stored: Stored) -> Iterator[None]:
    """Refuse, while modules are built, parameters and buffers beyond what is stored and some to spare."""
    most = (2 * len(stored.shapes) + SPARE_TENSORS, 2 * stored.elements + SPARE_ELEMENTS)
    if stored.bytes:  # of pickles, nobody tells how many tensors they hold
        most = (2**20, most[1])
    count = {"tensors": 0, "elements": 0}

    def add(_: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is None:
            return
        count["tensors"] += 1
        count["elements"] += tensor.numel()
        if count["tensors"] > most[0] or count["elements"] > most[1]:
            raise ValueError(f"a model of this size needs more than the {stored.elements:,} numbers that are stored")

    hooks = [
        modules.register_module_parameter_registration_hook(add),
        modules.register_module_buffer_registration_hook(add),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
