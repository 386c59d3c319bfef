"""Writes the diffusers folder that other people load, in which nothing tells where its maker's files lie.

Without a generator that is the folder of a tokenizer alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from pipeline.code import Condition
from pipeline.components import check, find, structure
from pipeline.files.paths import without_paths
from pipeline.files.writing import new_file, read_json, write_json, write_text
from pipeline.images.grids import captioned, make_grid
from pipeline.images.preparing import to_rgb
from pipeline.latent_pipeline import LatentPipeline
from pipeline.networks.base import Network
from pipeline.publishing.model_card import Facts, model_card
from pipeline.publishing.self_contained import write_self_contained
from pipeline.publishing.stock import write_stock
from pipeline.publishing.tokenizer_card import tokenizer_card
from pipeline.recipes.schema import Recipe, settings
from pipeline.runs.milestones import chosen_decoder
from pipeline.runs.workspace import OWNER, Workspace
from pipeline.sampling.held_out_prompts import find_text
from pipeline.sampling.many_images import Plan, assemble, plan_recipe
from pipeline.saved_folders import forget_paths, load_component
from pipeline.text_encoders.base import TextEncoder
from pipeline.tokenizers.base import Tokenizer
from pipeline.validation import SettingError

READS = ("tokenizer", "report")
READS_WHERE_MADE = ("text", "decoder", "generator")
WRITES = "pipeline"
IMAGES = ()
SHOWN_CLASSES, SHOWN_EACH = 8, 2  # in the card's grid


def uses(recipe: Recipe) -> Any:
    return recipe.publish, recipe.sample, recipe.data


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    if work.accelerator.is_main_process:
        publish = publish_tokenizer if recipe.generator is None else publish_pipeline
        publish(recipe, work, out)


def publish_tokenizer(recipe: Recipe, work: Workspace, out: Path) -> None:
    """The tokenizer alone, with what was measured of it."""
    cls = find("tokenizers", recipe.tokenizer.model["kind"])
    tokenizer = load_component(cls, work.artefact("tokenizer"))
    forget_paths(tokenizer)
    tokenizer.save_pretrained(out / "tokenizer")
    public = public_recipe(recipe)
    notes = write_stock_folders({"tokenizer": tokenizer}, out / "stock") if recipe.publish.stock else []
    facts = replace(write_facts(public, work, READS, out), notes=notes)
    write_text(out / "README.md", tokenizer_card(public, tokenizer, facts))


def publish_pipeline(recipe: Recipe, work: Workspace, out: Path) -> None:
    """The pipeline of tokenizer and generator, with samples and what was measured of them."""
    text, decoder = find_text(recipe, work), chosen_decoder(recipe, work.artefact("decoder"))
    pipe = assemble(recipe, decoder, work.artefact("generator"), text)
    encoder, plan = pipe.text_encoder, plan_recipe(recipe, pipe, text)
    pipe.register_to_config(text=public_encoder(recipe))
    if recipe.publish.text_encoder is not True:
        pipe.text_encoder = None
    pipe.save_pretrained(out)
    pipe.defaults = replace(pipe.defaults, weak=without_paths(pipe.defaults.weak))
    saved = load_again(pipe, out, work.accelerator.device, encoder, plan.prompts)
    if plan.prompts is None:
        write_grid(saved, out / "samples")
    else:
        write_captioned_grid(saved, plan, out / "samples")
    notes = write_extras(recipe, pipe.to("cpu"), out)
    public = public_recipe(recipe)
    facts = write_facts(public, work, READS + READS_WHERE_MADE, out)
    write_text(out / "README.md", model_card(public, pipe, replace(facts, notes=notes, prompts=plan.prompts or [])))


def public_encoder(recipe: Recipe) -> dict[str, Any] | None:
    """The node of the text encoder as others have it: by the reference that the recipe gives, without paths."""
    if recipe.text is None:
        return None
    node, reference = recipe.text.encoder, recipe.publish.text_encoder
    if isinstance(reference, str):
        cls, arguments = check("text_encoders", node)
        return node | dict.fromkeys(cls.named_models(arguments), reference)
    return without_paths(node)


def public_recipe(recipe: Recipe) -> Recipe:
    """The recipe without what tells where its maker's files lie."""
    return structure(Recipe, without_paths(asdict(recipe)))


def write_facts(public: Recipe, work: Workspace, made_of: tuple[str, ...], out: Path) -> Facts:
    """Write the recipe, the provenance of these artefacts and the numbers of the report; returns what a card tells."""
    write_text(out / OWNER, settings(public))
    provenance = without_paths(work.history(made_of))
    write_json(out / "provenance.json", provenance)
    numbers = without_paths(read_json(work.artefact("report") / "metrics.json"))
    write_json(out / "eval" / "metrics.json", numbers)
    return Facts((work.root / WRITES).as_posix(), numbers, provenance)


def load_again(
    pipe: LatentPipeline, folder: Path, device: torch.device, encoder: TextEncoder | None, prompts: list[str] | None
) -> LatentPipeline:
    """The pipeline as it was saved; an error unless it makes the image of the one in memory.

    One that was saved without its text encoder is given it.
    """
    saved = LatentPipeline.from_pretrained(folder)
    if saved.text_encoder is None and encoder is not None:
        saved.text_encoder = encoder
    for one in (pipe, saved):
        one.to(device).set_progress_bar_config(disable=True)
    embeds = None if prompts is None else saved.encode_prompt(prompts[0])
    if not torch.allclose(first_image(pipe, embeds), first_image(saved, embeds), atol=1e-3):
        raise RuntimeError(f"{folder} does not make the images of the pipeline that was saved in it")
    return saved


def first_image(pipe: LatentPipeline, embeds: Condition | None = None) -> Tensor:
    labels = 0 if pipe.num_classes else None
    return pipe(labels, prompt_embeds=embeds, generator=Generator().manual_seed(0), output_type="pt").images


def write_grid(pipe: LatentPipeline, folder: Path) -> None:
    """A few images of evenly chosen classes, of seeds 0, 1, ...; none is chosen by eye."""
    classes = min(pipe.num_classes or 1, SHOWN_CLASSES)
    columns = [i * pipe.num_classes // classes for i in range(classes)] if pipe.num_classes else [None] * SHOWN_CLASSES
    seeds = list(range(len(columns) * SHOWN_EACH))
    labels = columns * SHOWN_EACH if pipe.num_classes else None
    generators = [Generator().manual_seed(seed) for seed in seeds]
    images = pipe(labels, num_images=len(seeds), generator=generators).images
    with new_file(folder / "grid.png") as draft:
        make_grid(images, len(columns)).save(draft)
    write_json(folder / "seeds.json", {"labels": labels, "seeds": seeds}, indent=None)


def write_captioned_grid(pipe: LatentPipeline, plan: Plan, folder: Path) -> None:
    """The first images that the recipe samples, each above its prompt; none is chosen by eye."""
    shown = range(min(len(plan.seeds), SHOWN_CLASSES * SHOWN_EACH))
    labels, seeds = plan.labels and plan.labels[: len(shown)], plan.seeds[: len(shown)]
    generators = [Generator().manual_seed(seed) for seed in seeds]
    images = pipe(labels, num_images=len(shown), generator=generators, **plan.words(shown)).images
    pixels = np.stack([np.asarray(to_rgb(image)) for image in images])
    with new_file(folder / "grid.png") as draft:
        captioned(pixels, plan.prompts, SHOWN_CLASSES).save(draft)
    chosen = {"labels": labels, "seeds": seeds, "prompts": plan.prompts[: len(shown)]}
    write_json(folder / "seeds.json", chosen, indent=None)


def write_extras(recipe: Recipe, pipe: LatentPipeline, out: Path) -> list[str]:
    """The folders that the recipe asks for besides; returns what the card says of them."""
    notes = []
    if recipe.publish.self_contained:
        write_self_contained(out, out / "self_contained")
        notes.append("`self_contained/` loads with diffusers alone, from the code that lies in it.")
    if recipe.publish.stock:
        notes += write_stock_folders({"network": pipe.network, "tokenizer": pipe.tokenizer}, out / "stock")
    return notes


def write_stock_folders(models: Mapping[str, Tokenizer | Network], folder: Path) -> list[str]:
    """The stock folders; returns what the card says of them. ValueError with one line where no model has one."""
    folders = write_stock(models, folder)
    if not folders.written:
        raise SettingError("publish.stock", f": {'; '.join(folders.refusals)}; set publish.stock=false")
    for refusal in folders.refusals:
        print(f"publish.stock leaves out one part: {refusal}")
    return [f"`stock/{folder}/` is a {text}" for folder, text in folders.written.items()]
