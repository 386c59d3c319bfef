"""Encodes the captions of images by a frozen text encoder.

Each distinct caption is encoded once, and the empty one; an encoder without published weights is trained on the
training captions first. All later stages that read text read it here.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.captions.collecting import CollectedCaptions, collect
from pipeline.captions.table import ENCODER, describe, write_rows
from pipeline.components import build, find
from pipeline.files.shards import fill, sha256_of
from pipeline.files.writing import new_folder, write_json
from pipeline.recipes.building import seed_initial_weights
from pipeline.recipes.schema import Recipe
from pipeline.runs.precision import DTYPES, arithmetic
from pipeline.runs.workspace import Workspace
from pipeline.saved_folders import load_component
from pipeline.text_encoders.base import TextEncoder

READS = ()
WRITES = "text"
IMAGES = ("captions",)
PRECISION = "text"
NEEDS = "text"
log = logging.getLogger(__name__)


def uses(recipe: Recipe) -> Any:
    return recipe.text, recipe.text.identity, recipe.seed, recipe.precision.text


def run(recipe: Recipe, work: Workspace, out: Path) -> None:
    collected, main = collect(recipe.data), work.accelerator.is_main_process
    cls = find("text_encoders", recipe.text.encoder["kind"])
    if main and not (out / ENCODER).exists():
        encoder = make_encoder(recipe, collected, work, out)
        with new_folder(out / ENCODER) as draft:
            encoder.save_pretrained(draft)
    work.accelerator.wait_for_everyone()
    encoder = load_component(cls, out / ENCODER).requires_grad_(False).eval().to(work.accelerator.device)
    if main:
        write_rows(out, collected)
    config = {name: value for name, value in encoder.config.items() if not name.startswith("_")}
    made_by = {"kind": recipe.text.encoder["kind"], "config": config, "weights": sha256_of(encoder.state_dict())}
    settings = {"stored": recipe.text.precision, "computed": recipe.precision.text, "shard": recipe.text.shard}
    manifest = describe(collected, made_by, encoder.spec, settings)

    def make(batches: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        for numbers in batches:
            yield encode(encoder, [collected.texts[number] for number in numbers.tolist()], recipe)

    fill(out, manifest, make, recipe.text.batch, work.accelerator, "encoding captions")


def make_encoder(recipe: Recipe, collected: CollectedCaptions, work: Workspace, out: Path) -> TextEncoder:
    """The encoder of the recipe: with its published weights, or trained on the training captions, which a line says."""
    seed_initial_weights(recipe.seed)
    encoder = build("text_encoders", recipe.text.encoder).to(work.accelerator.device)
    said = "its published weights are used as they are"
    if not encoder.given_weights:
        said = encoder.fit(collected.of_split("train"), recipe.seed)
        work.say(said)
    write_json(out / "encoder.json", {"encoder": said})
    return encoder


@torch.no_grad()
def encode(encoder: TextEncoder, texts: list[str], recipe: Recipe) -> dict[str, Tensor]:
    """What is stored of captions, on the CPU; FloatingPointError naming one whose features do not fit the precision."""
    with arithmetic(encoder.device, recipe.precision.text):
        made = encoder.encode(texts)
    stored = {"text": made.text.to(DTYPES[recipe.text.precision]), "text_mask": made.text_mask.to(torch.uint8)}
    if made.pooled is not None:
        stored["pooled"] = made.pooled.to(DTYPES[recipe.text.precision])
    for name, tensor in stored.items():
        finite = tensor.isfinite().flatten(1).all(1) if tensor.is_floating_point() else None
        if finite is not None and not finite.all():
            caption = texts[int((~finite).nonzero()[0])]
            raise FloatingPointError(
                f"the features ({name}) of the caption {caption!r} are not finite; set text.precision=fp32"
            )
    return {name: tensor.cpu() for name, tensor in stored.items()}
