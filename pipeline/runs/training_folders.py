"""Where each training of a recipe keeps its log, its previews and its pictures in the folder of a run."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import Recipe

LOG = "metrics.jsonl"
PREVIEW = "preview"  # pictures, in the run's folder


@dataclass(frozen=True)
class TrainingFolder:
    """One training: of which artefact it is a part, and where in that artefact, or in its draft, its files are."""

    title: str
    place: str  # of its section in the recipe
    artefact: str
    inside: str  # folder in the artefact's
    pictures: str  # folder in the run's
    loop: Loop


def training_folders(recipe: Recipe) -> Iterator[TrainingFolder]:
    """All trainings of a recipe, in the order of the line; those of no steps too."""
    for name, phase in recipe.tokenizer.phases.items():
        at = f"tokenizer.phases.{name}", "tokenizer", f"phases/{name}"
        yield TrainingFolder(f"tokenizer {name}", *at, f"{PREVIEW}/tokenizer/{name}", phase.loop)
    if recipe.joint is not None:
        yield TrainingFolder("joint", "joint", "joint", ".", f"{PREVIEW}/joint", recipe.joint.phase.loop)
    if recipe.generator is not None:
        at = "generator", "generator", "."
        yield TrainingFolder("generator", *at, f"{PREVIEW}/generator", recipe.generator.loop)
    if recipe.posttrain is not None:
        at = "posttrain", "decoder", "posttraining"
        yield TrainingFolder("decoder", *at, f"{PREVIEW}/decoder", recipe.posttrain.phase.loop)


def training_folder(recipe: Recipe, place: str) -> TrainingFolder:
    """That of the training whose section is `place`, such as `tokenizer.phases.main` or `generator`."""
    return next(one for one in training_folders(recipe) if one.place == place)
