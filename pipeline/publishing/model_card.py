"""The model card of a published pipeline: what it is, how it was made, what was measured, how to use it."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from pipeline.code import LatentSpec
from pipeline.components import Node
from pipeline.latent_pipeline import LatentPipeline
from pipeline.recipes.schema import Recipe
from pipeline.reporting.markdown_text import markdown_text
from pipeline.reporting.number_text import format_number

TASKS = {False: "unconditional-image-generation", True: "text-to-image"}  # the hub's names, without text and with
SNIPPET = """```python
import torch
from pipeline import LatentPipeline

pipe = LatentPipeline.from_pretrained("{path}")
{encoder}generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
images = pipe({ask}num_inference_steps={steps}, {guidance}generator=generators).images
images[0].save("sample.png")
```"""
LOAD_ENCODER = """from pipeline.sampling.text_encoder import load_text_encoder

pipe.text_encoder = load_text_encoder(pipe)
"""
WITHOUT_ENCODER = """

The weights of the text encoder, a {kind}, are not in this folder; `load_text_encoder` gets them from where the folder
says, and `prompt_embeds=` takes features of your own."""
ALONE = """With diffusers alone, from the code in `self_contained/`, which runs because you say so; read it first:

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{path}/self_contained", trust_remote_code=True)
image = pipe({ask}).images[0]
```"""
LIMITS = """It makes images like those it was trained on, at their size and of their classes only; it has their biases,
and it may repeat some of them (see near copies, where they are counted). The numbers hold under the protocol beside
them; with other features, references or numbers of images they are others, and not comparable."""


@dataclass(frozen=True)
class Facts:
    """What the card tells besides the recipe."""

    path: str  # where the folder will lie, as the snippet loads it
    numbers: dict[str, dict[str, Any]]  # report/metrics.json
    provenance: dict[str, dict[str, Any]]  # made_from.json of the artefacts it was made of
    notes: list[str] = field(default_factory=list)  # lines about what else is in the folder
    prompts: list[str] = field(default_factory=list)  # examples, of a generator that reads text


def model_card(recipe: Recipe, pipe: LatentPipeline, facts: Facts) -> str:
    """README.md of a published pipeline, its YAML header valid on the hub."""
    sections = {
        markdown_text(recipe.name): f"{summary(recipe, pipe)}\n\n![samples, not chosen](samples/grid.png)",
        "Use": usage(pipe, facts, recipe.publish.self_contained),
        "How it was made": making(recipe, pipe, facts),
        "Measured": measured(facts.numbers),
        "Limits": LIMITS,
        "Licence": f"{markdown_text(recipe.publish.license)}. The training images have a licence of their own.",
    }
    return join_sections(header(recipe, facts.numbers), sections)


def join_sections(header: ModelCardData, sections: dict[str, str]) -> str:
    """A card of these sections, by title; the first is the card's own."""
    body = "\n\n".join(
        f"{'#' if i == 0 else '##'} {title}\n\n{text}" for i, (title, text) in enumerate(sections.items())
    )
    return f"---\n{header.to_yaml()}\n---\n\n{body}\n"


def header(recipe: Recipe, numbers: dict[str, dict[str, Any]]) -> ModelCardData:
    """The card's metadata."""
    source, data, task = recipe.data.source, dataset_name(recipe.data.source), TASKS[recipe.text is not None]
    return ModelCardData(
        license=recipe.publish.license,
        library_name="diffusers",
        pipeline_tag=task,
        tags=["tessera", *sorted({part["kind"] for part in recipe.components.values()})],
        datasets=[data] if source["kind"] == "hub" and not Path(data).exists() else None,
        model_name=recipe.name,
        eval_results=evaluation_results(recipe, numbers, task),
    )


def evaluation_results(recipe: Recipe, numbers: dict[str, dict[str, Any]], task: str) -> list[EvalResult] | None:
    """Every finite number as the hub keeps it."""
    results = [
        EvalResult(
            task_type=task,
            dataset_type=recipe.data.source["kind"],
            dataset_name=dataset_name(recipe.data.source),
            metric_type=name,
            metric_name=entry.get("title", name),
            metric_value=round(entry["value"], 6),
        )
        for name, entry in numbers.items()
        if is_number(entry.get("value"))
    ]
    return results or None


def summary(recipe: Recipe, pipe: LatentPipeline) -> str:
    of = f"of {pipe.num_classes} classes, " if pipe.num_classes else "without classes, "
    of = of if pipe.text_spec is None else f"{of}asked for in words, "
    height, width = recipe.data.sides
    kinds = [part["kind"].replace("_", " ") for part in recipe.components.values()]
    return (
        f"Makes images of {height}x{width} pixels {of}trained on"
        f" {markdown_text(dataset_name(recipe.data.source))}."
        f" A {kinds[0]} turns an image into {tokens_text(pipe.tokenizer.spec)};"
        f" a {kinds[1]} trained by {kinds[2]} makes such tokens anew."
    )


def tokens_text(spec: LatentSpec) -> str:
    """What an image becomes, in words."""
    entries = f"{spec.codebooks} x ids of {spec.codes}" if spec.codebooks > 1 else f"ids of {spec.codes}"
    most = "at most " if spec.ends else ""
    return f"{most}{'x'.join(map(str, spec.grid))} tokens, {entries if spec.vocab else f'{spec.dim} channels each'}"


def usage(pipe: LatentPipeline, facts: Facts, self_contained: bool) -> str:
    """The snippets; a test runs them as they stand."""
    path, last, scale = facts.path, pipe.num_classes - 1, pipe.defaults.guidance.scale
    three = f"class_labels=[0, 0, {last}], " if pipe.num_classes else "num_images=3, "
    if facts.prompts:
        asked = json.dumps([facts.prompts[i % len(facts.prompts)] for i in range(3)], ensure_ascii=False)
        three = f"{three if pipe.num_classes else ''}prompt={asked}, "
    guidance = f"guidance_scale={scale:g}, " if pipe.network.reads else ""
    encoder = LOAD_ENCODER if facts.prompts and pipe.text_encoder is None else ""
    text = SNIPPET.format(path=path, ask=three, steps=pipe.steps, guidance=guidance, encoder=encoder)
    if encoder:
        text += WITHOUT_ENCODER.format(kind=pipe.config.text["kind"])
    if pipe.id2label:
        first = list(pipe.id2label.items())[:10]
        texts = [(str(label), markdown_text(name)) for label, name in first]
        shown = ", ".join(name if name == label else f"{label} {name}" for label, name in texts)
        text += f"\n\nClasses, by number or name: {shown}{', ...' if len(pipe.id2label) > 10 else ''}."
    if self_contained:
        text += "\n\n" + ALONE.format(path=path, ask=alone_call(pipe, facts))
    return text


def alone_call(pipe: LatentPipeline, facts: Facts) -> str:
    """The arguments of the call of a folder that loads with diffusers alone; without its encoder it is given zeros."""
    asked = ["class_labels=0"] if pipe.num_classes else []
    if facts.prompts and pipe.text_encoder is not None:
        asked.append(f"prompt={json.dumps(facts.prompts[0], ensure_ascii=False)}")
    elif facts.prompts:
        spec = pipe.text_spec
        sizes = {"prompt_embeds": (1, spec.tokens, spec.layers * spec.dim)}
        sizes |= {"pooled_prompt_embeds": (1, spec.pooled)} if spec.pooled else {}
        asked += [f"{name}=torch.zeros{size}" for name, size in sizes.items()]
    return ", ".join(asked)


def making(recipe: Recipe, pipe: LatentPipeline, facts: Facts) -> str:
    defaults = pipe.defaults
    weak = (
        ""
        if pipe.weak is None
        else f" away from a network of {size(pipe.weak)} parameters ({markdown_text(defaults.weak)})"
    )
    rows = [
        *node_rows(recipe),
        f"| generator's training | {recipe.generator.loop.steps} steps of {recipe.generator.loop.batch} |",
        f"| parameters | tokenizer {size(pipe.tokenizer)}, network {size(pipe.network)} |",
        f"| sampling | {pipe.steps} network evaluations, guidance {defaults.guidance.scale:g}{weak} |",
    ]
    again = f"Made by `python run.py all {recipe.name}`; every setting is in `recipe.yaml`, times in `provenance.json`."
    return "\n".join(
        [
            again,
            "",
            "| part | |",
            "|---|---|",
            *rows,
            *provenance_rows(facts.provenance),
            *(f"\n{note}" for note in facts.notes),
        ]
    )


def node_rows(recipe: Recipe) -> list[str]:
    """The models of the line and its images, as rows of a table."""
    rows = [f"| {name} | {markdown_text(node_text(node))} |" for name, node in recipe.components.items()]
    source, data = markdown_text(node_text(recipe.data.source)), recipe.data
    return [*rows, f"| images | {source}, {data.shape_text}, {data.crop} crop |"]


def provenance_rows(provenance: dict[str, dict[str, Any]]) -> list[str]:
    return [f"| made | {markdown_text(provenance_text(name, note))} |" for name, note in provenance.items()]


def measured(numbers: dict[str, dict[str, Any]]) -> str:
    """The numbers as a table; protocols in full are in eval/metrics.json."""
    if not numbers:
        return "Nothing was measured."
    columns = {"value": "value", "before": "before training", "held_out": "real held-out images"}
    shown = [key for key in columns if any(is_number(entry.get(key)) for entry in numbers.values())]
    rows = [f"| | {' | '.join(columns[key] for key in shown)} | under |", f"|---|{'---|' * len(shown)}---|"]
    for name, entry in numbers.items():
        unit = entry.get("unit", "")
        values = [number_text(entry[key], unit) if entry.get(key) is not None else "" for key in shown]
        cells = (entry.get("title", name), *values, protocol_text(entry["protocol"]))
        rows.append(f"| {' | '.join(map(markdown_text, cells))} |")
    return "\n".join([*rows, "", "Each protocol in full, with versions: `eval/metrics.json`."])


def dataset_name(source: Node) -> str:
    return str(source.get("path", source["kind"]))


def node_text(node: Node) -> str:
    texts = {n: node_text(value) if isinstance(value, dict) and "kind" in value else value for n, value in node.items()}
    arguments = ", ".join(f"{name} {value}" for name, value in texts.items() if name != "kind")
    return node["kind"] + (f" ({arguments})" if arguments else "")


def protocol_text(protocol: dict[str, Any]) -> str:
    """The part of a protocol that tells two numbers apart at a glance."""
    features = protocol.get("features", protocol.get("judge"))
    named = features.get("kind", features.get("name", "")) if isinstance(features, dict) else features
    return "; ".join(str(part) for part in (protocol.get("images"), named and f"features: {named}") if part)


def provenance_text(name: str, note: dict[str, Any]) -> str:
    spent = f" in {note['seconds']:.0f} s" if is_number(note.get("seconds")) else ""
    return f"{name}{spent} on {note.get('device', 'an unknown device')}, {note.get('precision', '')}"


def size(module: Any) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"


def number_text(value: float, unit: str) -> str:
    return format_number(value, unit) if is_number(value) else "not finite"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
