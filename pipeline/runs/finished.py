"""Finding a finished run again, by its folder, its name or its recipe, and the tokenizer in it."""

from pathlib import Path

from pipeline.program import command_line
from pipeline.recipes.files import CONFIGS
from pipeline.recipes.schema import load
from pipeline.runs.machine import RUNS
from pipeline.runs.milestones import chosen_decoder
from pipeline.runs.workspace import NOTE, OWNER, check_recipe_file
from pipeline.vision.weights import digest

CARD = "card.json"  # in card/
EARLIER = ("latents/tokenizer", "joint", "tokenizer")  # where a run has tokenizers, the latest first


def run_folder(name: str) -> Path | None:
    """The folder of a run given as a path, as a name in runs/ or as a recipe; None where there is none.

    ValueError where its recipe.yaml is damaged.
    """
    recipe = CONFIGS / f"{name}.yaml"
    folders = [Path(name)] if Path(name).suffix not in (".yaml", ".yml") else []
    of_recipe = [RUNS / load(name).name] if recipe.is_file() or Path(name).is_file() else []
    run = next((path for path in [*folders, RUNS / name, *of_recipe] if (path / OWNER).is_file()), None)
    if run is not None:
        check_recipe_file(run)
    return run


def tokenizer_of(run: Path) -> Path:
    """The tokenizer at the end of a run's line, or the latest there is; ValueError before its training."""
    for folder in (last_tokenizer(run), *(run / name for name in EARLIER)):
        if (run / folder.relative_to(run).parts[0] / NOTE).is_file():
            return folder
    raise ValueError(f"{run} has no tokenizer yet; type: {command_line('train-tokenizer RECIPE')}")


def last_tokenizer(run: Path) -> Path:
    """Where a finished run has the tokenizer that its line ends with: that which its recipe decodes samples by."""
    file = run / OWNER
    recipe = load(str(file)) if file.is_file() else None
    if recipe is not None and recipe.generator is None:
        return run / "tokenizer"
    return run / "decoder" if recipe is None else chosen_decoder(recipe, run / "decoder")


def find_pipeline(source: str) -> str | Path:
    """The folder of a run's pipeline; `source` itself where it is no run. ValueError before a run is published."""
    run = run_folder(source)
    if run is None:
        return source
    if not (run / "pipeline" / NOTE).is_file():
        raise ValueError(f"{run} has no pipeline yet; type: {command_line('publish RECIPE')}")
    return run / "pipeline"


def sha256_of_tokenizer(folder: Path) -> dict[str, str]:
    """Of the weights and the config in a tokenizer's folder, by file."""
    return {path.name: digest(path) for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"])}
