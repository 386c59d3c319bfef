"""Where a run keeps networks and decoders as they were after chosen steps of their training."""

from pathlib import Path

from pipeline.recipes.schema import Recipe


def milestone(folder: Path, step: int) -> Path:
    """Where a stage's folder, generator/ or decoder/, has the network, or the tokenizer, as it was after `step`."""
    return folder / "milestones" / f"step_{step:08d}"


def chosen_decoder(recipe: Recipe, decoder: Path) -> Path:
    """The tokenizer in a run's folder `decoder` that `recipe.sample` decodes by: the one kept, or an earlier one."""
    earlier = recipe.sample.decoder
    return decoder if earlier is None else milestone(decoder, earlier.step)
