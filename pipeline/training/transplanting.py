"""A generator on another codebook: its rows of codes made of a trained network's, and the loss that it begins with."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.captions.table import Captions, open_captions
from pipeline.components import build
from pipeline.features.passes import evenly_spaced
from pipeline.files.writing import write_json
from pipeline.images.reading import Images
from pipeline.latents.code_source import CodeSource
from pipeline.latents.encoded_images import open_images
from pipeline.latents.encoding import Encoder, EncodingPlan
from pipeline.networks.base import Network
from pipeline.recipes.generator_training import Start
from pipeline.recipes.schema import Recipe
from pipeline.recipes.started import find_old_tokenizer
from pipeline.runs.workspace import Workspace
from pipeline.saved_folders import load_tokenizer
from pipeline.similarities.base import CodePair, Similarity
from pipeline.training.generation import Generation
from pipeline.training.held_out import Measuring, Rows
from pipeline.training.held_out_codes import HeldOutCodes
from pipeline.transplants.base import Transplant

RECORD = "transplant.json"
log = logging.getLogger(__name__)


class Transplanting:
    """What a stage passes to the start of a network: how its rows are made, and the codes that are compared.

    `codes` are of the recipe's tokenizer, those of the training pictures; the old tokenizer is that of the recipe's
    `generator.start`, and encodes the same pictures where the way compares codes.
    """

    def __init__(self, recipe: Recipe, codes: CodeSource, captions: Captions | None, accelerator: Accelerator):
        self.recipe, self.codes, self.captions, self.accelerator = recipe, codes, captions, accelerator
        self.way: Transplant = build("transplants", recipe.generator.start.transplant)

    def tables(self, network: Network, stored: Network) -> dict[str, Tensor]:
        """The tables of codes of `network`, by name, made of those of the `stored` network."""
        near = None if self.way.similarity is None else self.compare(self.way.similarity)
        return transplant_tables(network, stored, self.way, near)

    def compare(self, similarity: Similarity) -> list[list[Tensor]]:
        """[V_new, V_old] of every segment and codebook."""
        old = load_tokenizer(str(find_old_tokenizer(self.recipe.generator.start)), "generator.start.tokenizer")
        new = load_tokenizer(str(self.codes.folder / "tokenizer"), "latents")
        similarity.check(old.spec, new.spec)
        return similarity.measure(CodePair(old, new, lambda count: self.read_ids(old, count)))

    def read_ids(self, old: torch.nn.Module, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Ids of `count` training pictures, evenly spaced, by the `old` tokenizer and as the generator reads them."""
        recipe, manifest = self.recipe, self.codes.manifest
        images = Images(recipe.data, "train", self.captions)
        plan = EncodingPlan(recipe.latents, recipe.seed, recipe.precision.latents)
        encoder = Encoder(old, plan, self.accelerator.device)
        chosen = evenly_spaced(None, len(self.codes), min(count, len(self.codes)))
        for rows in chosen.split(recipe.latents.batch):
            pictures = images.chosen(rows, torch.zeros_like(rows), manifest["crops"], manifest["flip"])
            yield encoder.view(pictures, rows, 0)["ids"], self.codes.plain(rows).code.ids


@torch.no_grad()
def transplant_tables(
    network: Network, stored: Network, way: Transplant, near: list[list[Tensor]] | None
) -> dict[str, Tensor]:
    """The tables of codes of `network`, by name, made of those of `stored`.

    Rows of no code, as of a mask or of the end of a row, are taken as they are.

    `near` [V_new, V_old] is of every segment and codebook; None where the way compares nothing.
    """
    drawn, tables = network.state_dict(), {}
    old_codes, codes = (each.config.vocab - each.config.get("ends", False) for each in (stored, network))
    for name, trained in stored.state_dict().items():
        if (place := network.table_of(name)) is None:
            continue
        similarity = None if near is None else near[place[0]][place[1]].to(trained.device)
        rows = way.rows(trained[:old_codes], drawn[name][:codes].to(trained), similarity)
        tables[name] = torch.cat([rows, trained[old_codes:]])
    return tables


def record_start(recipe: Recipe, work: Workspace, codes: CodeSource, task: Generation, out: Path) -> None:
    """Write the losses of a network before its first step, of held-out codes and of some that it is trained on.

    They are measured as those of previews are, by the same draws.
    """
    start, steps, accelerator = recipe.generator.start, recipe.generator.loop.steps, work.accelerator
    captions = open_captions(recipe, work.artefact, "held_out", "generator")
    images = open_images(work.artefact("latents"), recipe, accelerator, "held_out", captions)
    rows: dict[str, Rows] = {"held_out": HeldOutCodes(images), "train": codes}
    player = task.players["network"].to(accelerator.device)
    measuring = Measuring(task, steps - 1, recipe.seed, accelerator, recipe.precision.generator)
    training = player.training
    terms = {name: measuring.terms({"network": player.eval()}, each) for name, each in rows.items()}
    player.train(training)
    if accelerator.is_main_process:
        losses = {name: sum(values.values()) for name, values in terms.items()}
        write_json(out / RECORD, described(start) | losses | {"terms": terms["held_out"]}, indent=1)
        log.warning("the generator begins on its new codes with a held-out loss of %.4g", losses["held_out"])


def described(start: Start) -> dict[str, Any]:
    tokenizer = find_old_tokenizer(start)
    return {"transplant": start.transplant, "old_tokenizer": None if tokenizer is None else str(tokenizer)}
