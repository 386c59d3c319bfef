"""`import FORMAT FILE OUT`: another project's checkpoint as folders that recipes can name."""

import json
from pathlib import Path
from typing import Any

from pipeline.files.writing import new_folder
from pipeline.program import command_line
from pipeline.published import catalogue, converted, find_format, formats
from pipeline.published.checkpoint import read as read_state
from pipeline.recipes.derived import DERIVED


def import_checkpoint(words: list[str]) -> None:
    """Convert a checkpoint in one of the known formats to the folder OUT, whole or not at all.

    A tokenizer becomes OUT itself; a generator becomes OUT/network and OUT/objective, as train-generator writes them.
    Without words every format is listed, with the KEY=VALUE options that it has. Refused are an unknown format, an
    unreadable file, unexpected keys in it, and an OUT that is not empty.
    """
    if not words:
        print(catalogue())
        return
    if len(words) < 3:
        given, typed = " ".join(words), command_line("import FORMAT FILE OUT")
        raise ValueError(f"import needs FORMAT FILE OUT, not {given!r}; type: {typed}; formats: {', '.join(formats())}")
    name, file, out = words[0], Path(words[1]), Path(words[2])
    module = find_format(name)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a folder that is empty or does not exist")
    read = getattr(module, "read", read_state)  # files of several models have their own
    components = converted(name, read(file), words[3:])
    with new_folder(out) as draft:
        for role, component in components.items():
            component.save_pretrained(draft if role == "tokenizer" else draft / role)
    print(f"{name}: {file} -> {out} ({', '.join(components)})")
    for role, component in components.items():
        print(recipe_line(role, component, out))
    if "tokenizer" in components and (components["tokenizer"].std != 1).any():
        print("  latents.statistics=stored keeps the imported mean and std, for a generator that was trained with them")


def recipe_line(role: str, component: Any, out: Path) -> str:
    """The settings of a recipe that use a converted component, as they are written on the command line."""
    slot = {"tokenizer": "tokenizers", "network": "networks", "objective": "objectives"}[role]
    values = {n: v for n, v in component.config.items() if n not in DERIVED[slot] and not n.startswith("_")}
    node = json.dumps({"kind": type(component).__module__.rpartition(".")[2]} | values)
    path = {"tokenizer": "tokenizer.model", "network": "generator.network", "objective": "generator.objective"}[role]
    start = {"tokenizer": f" tokenizer.start={out}", "network": f" generator.start={out / role}"}.get(role, "")
    return f"  '{path}={node}'{start}"
