"""The commands beside the stages: one file each, and one row each in the table COMMANDS.

The help, the names that are known and the dispatch of `run.py` are read off the table. A function takes the words that
follow the command, and returns an exit status or None. This module imports nothing heavy, so that --help is quick.
"""

import importlib
import inspect
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A row of the table. `function` and `settings` are `module:name` and are imported only when they are needed."""

    name: str
    arguments: str  # as the help shows them; a command whose arguments begin with [ also runs without any
    purpose: str  # one line
    function: str
    settings: str = ""  # the record of what it takes as key=value

    @property
    def optional(self) -> bool:
        """Whether the command also runs without words."""
        return not self.arguments or self.arguments.startswith("[")

    def run(self, words: list[str]) -> int | None:
        return named(self.function)(words)

    def help(self) -> str:
        """What its function says of it, and every setting that it takes."""
        text = inspect.getdoc(named(self.function))
        if not self.settings:
            return text
        from pipeline.recipes.describing import fields_of

        return "\n".join([text, "", "Settings, as key=value:", "", *fields_of(named(self.settings))])


COMMANDS = (
    Command(
        "check",
        "RECIPE",
        "checks a recipe: parameters, latents, memory, disk, time; processes=8 memory=80; writes nothing",
        "pipeline.commands.check:check",
        "pipeline.planning.summary:CheckSettings",
    ),
    Command("recipes", "", "lists the recipes", "pipeline.commands.recipes:list_recipes"),
    Command(
        "describe",
        "[NAME ...]",
        "lists what a recipe can state; of a section or kind (generator.loop, titok), every setting",
        "pipeline.commands.describe:describe_names",
    ),
    Command(
        "doctor",
        "",
        "shows what this machine has: packages, devices, weight files",
        "pipeline.commands.doctor:examine",
    ),
    Command(
        "watch",
        "RUN",
        "shows a run under way on a local page: stages, time left, losses, pictures; port=8008 or out=FILE.html",
        "pipeline.commands.watch:watch",
        "pipeline.commands.watch:WatchSettings",
    ),
    Command(
        "card",
        "RUN|FOLDER",
        "measures a tokenizer alone; for a FOLDER state data.source.kind=... data.size=...",
        "pipeline.commands.card:card",
        "pipeline.measuring.card_networks:CardSettings",
    ),
    Command(
        "sweep",
        "RUN",
        "measures the same seeds at several settings: guidance=[1,1.25,1.5,2] steps=[10,25] sampler.NAME=[..]",
        "pipeline.commands.sweep:sweep",
        "pipeline.commands.sweep:SweepSettings",
    ),
    Command(
        "compare",
        "RUN RUN ...",
        "puts runs side by side, in numbers and figures: out=DIR by=fd_pixels",
        "pipeline.commands.compare:compare",
        "pipeline.commands.compare:ComparisonSettings",
    ),
    Command(
        "reference",
        "DATA OUT.npz",
        "stores statistics of real images; DATA is a recipe, or a folder (size=256)",
        "pipeline.commands.reference:reference",
        "pipeline.commands.reference:FolderSettings",
    ),
    Command(
        "sample",
        "FOLDER|HUB_ID [OUT]",
        'samples a published pipeline: labels=[3,7] or prompt="a red fox" images=16 steps=50 guidance=2',
        "pipeline.commands.sample:sample",
        "pipeline.sampling.from_folder:FolderSettings",
    ),
    Command(
        "export",
        "FOLDER OUT",
        "writes the models of a run or a published folder alone, and as classes of diffusers: part=vae",
        "pipeline.commands.export:export",
        "pipeline.commands.export:ExportSettings",
    ),
    Command(
        "edit",
        "RUN|FOLDER|HUB_ID",
        'makes a picture anew: image=FILE mask=FILE strength=0.6 label=7 prompt="a fox" out=FILE.png',
        "pipeline.commands.edit:edit",
        "pipeline.commands.edit:EditSettings",
    ),
    Command(
        "reconstruct",
        "RUN|FOLDER OUT",
        "encodes pictures and decodes them again into the folder OUT: images=FOLDER",
        "pipeline.commands.reconstruct:reconstruct",
        "pipeline.commands.reconstruct:ReconstructSettings",
    ),
    Command(
        "import",
        "[FORMAT FILE OUT]",
        "converts another project's checkpoint; import alone lists the formats",
        "pipeline.commands.import_checkpoint:import_checkpoint",
    ),
)


def named(path: str) -> Any:
    """The function or class at `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
