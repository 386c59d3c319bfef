"""What a recipe's samples are asked for in words: the captions of held-out images, or the prompts of a file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.captions.table import ENCODER, Captions
from pipeline.components import find
from pipeline.features.passes import evenly_spaced
from pipeline.files.content import hash_files
from pipeline.files.paths import given_path
from pipeline.recipes.building import reads_captions
from pipeline.recipes.sampling import HELD_OUT
from pipeline.recipes.schema import Recipe
from pipeline.runs.workspace import Workspace
from pipeline.sampling.prompt_files import read_prompt_set
from pipeline.saved_folders import load_component
from pipeline.text_encoders.base import TextEncoder


@dataclass(frozen=True)
class HeldOutPrompts:
    """Captions of held-out images, evenly through them."""

    texts: list[str]
    rows: Tensor  # [n], of the images in their source


def find_text(recipe: Recipe, work: Workspace) -> Path | None:
    """The folder of the captions that a line's parts read; None where none reads any."""
    return work.artefact("text") if reads_captions(recipe, "samples") else None


def load_encoder_of_run(recipe: Recipe, text: Path) -> TextEncoder:
    """The encoder that a run's captions were encoded by, frozen."""
    cls = find("text_encoders", recipe.text.encoder["kind"])
    return load_component(cls, text / ENCODER).requires_grad_(False).eval()


def held_out_prompts(text: Path, count: int) -> HeldOutPrompts:
    """The first captions of `count` held-out images; where these are fewer, they are taken round."""
    captions = Captions(text, "held_out")
    if not len(captions):
        raise ValueError("sample.prompts=held_out: no image is held out; name a file of prompts")
    spaced = evenly_spaced(None, len(captions), min(count, len(captions)))
    rows = spaced[torch.arange(count) % len(spaced)]
    return HeldOutPrompts(captions.texts(rows), rows)


def prompts_of_recipe(recipe: Recipe, text: Path) -> tuple[list[str], Tensor | None]:
    """A prompt for each of a recipe's samples, and the rows of the held-out images whose captions they are."""
    part = recipe.sample
    if part.prompts == HELD_OUT:
        found = held_out_prompts(text, part.images)
        return found.texts, found.rows
    texts = read_prompt_set(part.prompts).texts
    return [texts[i % len(texts)] for i in range(part.images)], None


def fingerprint_prompts(recipe: Recipe) -> str | None:
    """A hash of the file that names the prompts of a recipe's samples, where there is one."""
    if recipe.text is None or recipe.sample.prompts == HELD_OUT:
        return None
    path = given_path(recipe.sample.prompts)
    return hash_files(path.parent, [path.name]) if path.is_file() else None
