"""The model card of a tokenizer that is published alone."""

from huggingface_hub import ModelCardData

from pipeline.publishing.model_card import (
    Facts,
    dataset_name,
    evaluation_results,
    join_sections,
    measured,
    node_rows,
    provenance_rows,
    size,
    tokens_text,
)
from pipeline.recipes.schema import Recipe
from pipeline.reporting.markdown_text import markdown_text
from pipeline.tokenizers.base import Tokenizer

TASK = "image-feature-extraction"  # the hub's nearest name for images to codes and back
SNIPPET = """```python
import torch
from {module} import {name}

tokenizer = {name}.from_pretrained("{path}/tokenizer").eval()
images = torch.rand(2, {shape}) * 2 - 1  # in [-1, 1]
with torch.no_grad():
    code = tokenizer.encode(images)
    rebuilt = tokenizer.decode(code)
```"""
LIMITS = """It rebuilds images like those it was trained on, at their size; others it may rebuild worse. The numbers
hold under the protocol beside them; with other features or numbers of images they are others, and not comparable."""


def tokenizer_card(recipe: Recipe, tokenizer: Tokenizer, facts: Facts) -> str:
    """README.md of a published tokenizer, its YAML header valid on the hub."""
    cls = type(tokenizer)
    shape = ", ".join(map(str, tokenizer.image_shape))
    snippet = SNIPPET.format(module=cls.__module__, name=cls.__name__, path=facts.path, shape=shape)
    sections = {
        markdown_text(recipe.name): summary(recipe, tokenizer),
        "Use": snippet,
        "How it was made": making(recipe, tokenizer, facts),
        "Measured": measured(facts.numbers),
        "Limits": LIMITS,
        "Licence": f"{markdown_text(recipe.publish.license)}. The training images have a licence of their own.",
    }
    return join_sections(header(recipe, facts), sections)


def header(recipe: Recipe, facts: Facts) -> ModelCardData:
    return ModelCardData(
        license=recipe.publish.license,
        library_name="diffusers",
        pipeline_tag=TASK,
        tags=["tessera", recipe.tokenizer.model["kind"]],
        model_name=recipe.name,
        eval_results=evaluation_results(recipe, facts.numbers, TASK),
    )


def summary(recipe: Recipe, tokenizer: Tokenizer) -> str:
    kind, (height, width) = recipe.tokenizer.model["kind"].replace("_", " "), recipe.data.sides
    return (
        f"A {kind} turns an image of {height}x{width} pixels into {tokens_text(tokenizer.spec)},"
        f" and back into an image. Trained on {markdown_text(dataset_name(recipe.data.source))}."
    )


def making(recipe: Recipe, tokenizer: Tokenizer, facts: Facts) -> str:
    phases = [
        f"| phase {markdown_text(name)} | {phase.loop.steps} steps of {phase.loop.batch}, trains {phase.train} |"
        for name, phase in recipe.tokenizer.phases.items()
    ]
    rows = [*node_rows(recipe), *phases, f"| parameters | {size(tokenizer)} |"]
    again = f"Made by `python run.py all {recipe.name}`; every setting is in `recipe.yaml`, times in `provenance.json`."
    table = [again, "", "| part | |", "|---|---|", *rows, *provenance_rows(facts.provenance)]
    return "\n".join([*table, *(f"\n{note}" for note in facts.notes)])
