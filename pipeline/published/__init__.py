"""Checkpoints of other projects, turned into our folders: one file a format."""

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints


def formats() -> dict[str, str]:
    """Name and one line of every format: the files of this folder that have a `convert`."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        if hasattr(loaded, "convert"):
            found[module.name] = loaded.WHAT
    return found


def import_checkpoint(arguments: list[str]) -> None:
    """`python run.py import FORMAT FILE OUT [key=value ...]`: each converted component in OUT, whole or not at all.

    Settings are arguments of the format's `convert`: what no weight tells, as tokens=576 of a LlamaGen model of 384 px.
    A tokenizer becomes OUT itself; a generator becomes OUT/network and OUT/objective, as train_generator leaves them.
    Raises ValueError for an unknown format, an unreadable file, unexpected keys, or an OUT that is not empty.
    """
    from pipeline.file_modes import ordinary_modes
    from pipeline.published.checkpoint import read as read_state
    from pipeline.validation import suggestion

    if not arguments:
        print("\n".join(f"{name:<14}{what}" for name, what in formats().items()))
        return
    if len(arguments) < 3:
        raise ValueError(f"import needs FORMAT FILE OUT; the formats: {', '.join(formats())}")
    name, file, out = arguments[0], Path(arguments[1]), Path(arguments[2])
    if name not in formats():
        raise ValueError(f"there is no format {name!r}{suggestion(name, list(formats()))}")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name another folder")
    chosen = importlib.import_module(f"{__name__}.{name}")
    read, convert = getattr(chosen, "read", read_state), chosen.convert  # files of several models have their own
    parts = convert(read(file), **stated(convert, arguments[3:]))
    draft = out.with_name(f".{out.name}-draft")
    for part, component in parts.items():
        component.save_pretrained(draft if part == "tokenizer" else draft / part)
    ordinary_modes(draft)
    if out.exists():
        out.rmdir()
    draft.rename(out)
    print(f"{name}: {file} -> {out} ({', '.join(parts)})")
    for part, component in parts.items():
        print(in_a_recipe(part, component, out))
    if "tokenizer" in parts and (parts["tokenizer"].std != 1).any():
        print("  latents.statistics=stored keeps the mean and std that came with it, for a generator that knows them")


def stated(convert: Callable[..., Any], overrides: list[str]) -> dict[str, Any]:
    """`key=value` settings as the arguments of `convert` beyond the state; ValueError for one that it does not have."""
    from pipeline.components import conform
    from pipeline.recipes.schema import parse
    from pipeline.validation import suggestion

    hints, known = get_type_hints(convert), list(inspect.signature(convert).parameters)[1:]
    values = {name: value for override in overrides for name, value in parse(override).items()}
    for name in values:
        if name not in known:
            raise ValueError(f"import: this format has no setting {name!r}{suggestion(name, known)}")
    return {name: conform(value, hints[name], name) for name, value in values.items()}


def in_a_recipe(part: str, component: Any, out: Path) -> str:
    """The lines of a recipe that use a converted component, as they would stand on the command line."""
    from pipeline.checks.recipe import DERIVED

    slot = {"tokenizer": "tokenizers", "network": "networks", "objective": "objectives"}[part]
    values = {n: v for n, v in component.config.items() if n not in DERIVED[slot] and not n.startswith("_")}
    node = json.dumps({"kind": type(component).__module__.rpartition(".")[2]} | values)
    where = {"tokenizer": "tokenizer.model", "network": "generator.network", "objective": "generator.objective"}[part]
    start = {"tokenizer": f" tokenizer.start={out}", "network": f" generator.start={out / part}"}.get(part, "")
    return f"  '{where}={node}'{start}"
