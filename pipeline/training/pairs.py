"""Pairs of a real image and the code that the generator made of it: made before, and read in training."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.checks.posttraining import check_held_out
from pipeline.code import Code, Condition
from pipeline.draws import ImageDraws, mix, uniform_by_seed
from pipeline.files.shards import MANIFEST, fill, key_of, load_shard, shard_file
from pipeline.files.writing import copy_folder, read_json
from pipeline.images.ahead import read_ahead
from pipeline.images.reading import ImageBatch, Images
from pipeline.images.stored_pixels import as_saved
from pipeline.latent_pipeline import LatentPipeline
from pipeline.latents.code_source import CodeBatch, CodeSource
from pipeline.latents.encoding import as_stored
from pipeline.latents.store import FORMAT, LatentStore
from pipeline.nn.finite import check_finite
from pipeline.recipes.post_training import PostTraining
from pipeline.recipes.schema import Recipe
from pipeline.runs.precision import arithmetic
from pipeline.samplers.original import Original
from pipeline.sampling.many_images import counted, sampling_record
from pipeline.tokenizers.base import Tokenizer

log = logging.getLogger(__name__)


@dataclass
class PairBatch:
    """Pairs, ready for the training of a decoder."""

    images: Tensor  # [B, C, H, W] real, in [-1, 1]
    code: Code  # what the generator made of them, at unit scale
    condition: Condition | None = None

    def to(self, *args: Any, **kwargs: Any) -> "PairBatch":
        condition = self.condition and self.condition.to(*args, **kwargs)
        return PairBatch(self.images.to(*args, **kwargs), self.code.to(*args, **kwargs), condition)

    def __len__(self) -> int:
        return len(self.images)


class Originals:
    """The real images of pairs, and their codes, which are of the same view: that of `recipe.posttrain.view`.

    `stored` is the view that the first stored code is of: where crops are stored, the centre of the first factor's.
    `center` is the plain centre crop, as RobusTok has it; where crops are stored it is encoded anew.
    Raises ValueError where the codes in `store` are not of these images.
    """

    def __init__(self, store: CodeSource, images: Images, recipe: Recipe):
        store.check_images(images)
        self.store, self.source = store, images
        self.anew = recipe.posttrain.view == "center" and bool(recipe.latents.crops)
        self.crops = () if self.anew else recipe.latents.crops[:1]

    def __len__(self) -> int:
        return len(self.store)

    def images(self, rows: Tensor) -> ImageBatch:
        """Images `rows` [B], with their conditions."""
        return next(self.source.views(rows, self.crops))

    def codes(self, rows: Tensor, tokenizer: Tokenizer | None = None) -> CodeBatch:
        """The codes of images `rows` [B]; `tokenizer` encodes those that are not stored."""
        batch = self.store.plain(rows)
        if not self.anew:
            return batch
        batch = batch.to(tokenizer.device)
        code = tokenizer.encode(self.images(rows).images.to(tokenizer.device), batch.condition)
        return replace(batch, code=replace(code, class_token=batch.code.class_token))


class Pairs:
    """Pairs `first` to `first + count` of those that `make_pairs` wrote; nothing is augmented.

    In `batch` a share `recipe.posttrain.rehearsal` of the images have their own code instead.
    Raises ValueError where the pairs are not of these codes.
    """

    def __init__(self, folder: Path, originals: Originals, recipe: Recipe, first: int, count: int):
        self.store, self.originals, self.first, self.count = LatentStore(folder), originals, first, count
        if self.store.manifest["codes"] != key_of(originals.store.manifest):
            raise ValueError(
                f"the pairs in {folder} are not of the codes in {originals.store.folder}; delete them to make new ones"
            )
        self.rehearsal = recipe.posttrain.rehearsal
        self.rows, _ = rows_of_pairs(recipe.posttrain, self.store.manifest["images"], recipe.seed)

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Tensor, seeds: Tensor) -> PairBatch:
        """Pairs `indices` [B]; which of them are rehearsals depends on `seeds` alone."""
        batch = self.plain(indices)
        if not self.rehearsal:
            return batch
        original = self.originals.codes(self.rows[indices + self.first]).code
        rehearsed = uniform_by_seed(seeds, "rehearsal") < self.rehearsal
        chosen = torch.arange(len(indices)) + len(indices) * rehearsed
        return replace(batch, code=Code.cat([batch.code, original])[chosen])

    def plain(self, indices: Tensor) -> PairBatch:
        """Pairs `indices` [B]."""
        pair = self.store.plain(indices + self.first)
        original = self.originals.images(self.rows[indices + self.first])
        return PairBatch(original.images, pair.code, original.condition)

    def read(self, batches: Iterable[Tensor]) -> Iterator[PairBatch]:
        """`plain` of each batch of pairs, whose images are read ahead by data.workers."""
        return read_ahead(self.plain, batches, self.originals.source.data.workers)


def make_pairs(
    recipe: Recipe,
    pipe: LatentPipeline,
    originals: Originals,
    folder: Path,
    accelerator: Accelerator,
    networks: dict[str, str] = {},  # noqa: B006
    earlier: Path | None = None,
) -> None:
    """Write a store of the codes that the generator makes of the codes of `recipe.posttrain.pairs` images.

    A pair is a function of (generator, tokenizer, original code, seed, row, how often the row was used before), up to
    rounding: not of the batch or the number of processes. Finished shards are kept, and pairs in the folder `earlier`
    are copied where they were made from all the same; `networks` are hashes of what makes them. Raises ValueError where
    the pairs held out leave no image to train on.
    """
    check_held_out(recipe.posttrain, len(originals))
    pipe.to(accelerator.device)
    manifest = manifest_of(recipe, originals) | {"networks": networks}
    if accelerator.is_main_process and not folder.exists() and earlier is not None and has_manifest(earlier, manifest):
        copy_folder(earlier, folder)
        log.info("pairs: those of the decoder before are of the same codes and generator, and are taken over")
    accelerator.wait_for_everyone()
    make = partial(map, pair_maker(recipe, pipe, originals))
    fill(folder, manifest, make, recipe.sample.batch, accelerator, "making pairs")


def has_manifest(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether a folder holds pairs that were made with this manifest."""
    there = folder / MANIFEST
    return there.is_file() and read_json(there) == json.loads(json.dumps(manifest))


def pair_maker(recipe: Recipe, pipe: LatentPipeline, originals: Originals) -> Callable[[Tensor], dict[str, Tensor]]:
    """A function from positions of pairs [B] to the tensors that are stored of them, with the cost of each.

    By the route `reencode` the generator's code is decoded, the image rounded as a file holds it, and encoded again
    (the mode) by the frozen encoder: the same as storing it as a PNG and encoding it at every step, since it is not
    augmented.
    """
    posttrain, device, spec = recipe.posttrain, pipe.device, originals.store.spec
    rows, rounds = rows_of_pairs(posttrain, len(originals), recipe.seed)

    @torch.no_grad()
    def make(positions: Tensor) -> dict[str, Tensor]:
        start, chosen = time.monotonic(), rows[positions]
        names = zip(chosen.tolist(), rounds[positions].tolist())
        draws = ImageDraws.from_seeds([mix(recipe.seed, "pair", *name) for name in names], device)
        with arithmetic(device, recipe.precision.posttrain), counted(pipe.network) as calls:
            batch = originals.codes(chosen, pipe.tokenizer).to(device)
            code = regenerate(pipe, batch.code, batch.condition, posttrain.preserve, draws)
            if posttrain.route == "reencode":
                made = as_saved(pipe.decode(code, batch.condition), recipe.data.depth)
                code = pipe.tokenizer.encode(made, batch.condition)
        tensors = {"ids": code.ids} if spec.vocab else {"z": code.z.float()}
        tensors = {name: tensor.cpu()[:, None] for name, tensor in tensors.items()}  # a store holds [rows, views, ...]
        tensors = as_stored(tensors, recipe.latents.precision, spec, chosen)
        if batch.condition is not None and batch.condition.labels is not None:
            tensors["labels"] = batch.condition.labels.cpu()
        cost = {"seconds": (time.monotonic() - start) / len(positions), "evaluations": float(calls.total())}
        return tensors | {name: torch.full((len(positions), 1), value) for name, value in cost.items()}

    return make


def regenerate(
    pipe: LatentPipeline, code: Code, condition: Condition | None, preserve: float, draws: ImageDraws
) -> Code:
    """The code as the pipeline's generator makes it anew at the settings that the pipeline samples with."""
    request = pipe.request(condition, draws)
    settings = pipe.objective.read_settings(pipe.defaults.sampler)
    regenerated = pipe.objective.regenerate(request, Original(code, preserve), settings)
    if regenerated.z is not None:
        check_finite(regenerated.z, "the code that the generator made anew")
    return regenerated


def rows_of_pairs(posttrain: PostTraining, images: int, seed: int) -> tuple[Tensor, Tensor]:
    """The training image of each pair, [pairs], and how often it was used before, [pairs]: functions of the seed.

    The last `posttrain.held_out` are images of which there is no other pair. Where there are more pairs than images,
    the others are used again, with other draws.
    """
    shuffled = torch.randperm(images, generator=torch.Generator().manual_seed(mix(seed, "pairs")))
    held_out, others = shuffled[: posttrain.held_out], shuffled[posttrain.held_out :]
    numbers = torch.arange(posttrain.pairs - posttrain.held_out)
    rows = torch.cat([others[numbers % len(others)], held_out])
    return rows, torch.cat([numbers // len(others), torch.zeros_like(held_out)])


def manifest_of(recipe: Recipe, originals: Originals) -> dict[str, Any]:
    """The manifest of the pairs, which a `LatentStore` reads like that of any codes."""
    posttrain, shard, store = recipe.posttrain, recipe.latents.shard, originals.store
    return {
        "format": FORMAT,
        "codes": key_of(store.manifest),
        "images": len(store),
        "held_out": posttrain.held_out,
        "preserve": posttrain.preserve,
        "route": posttrain.route,
        "view": "center" if originals.anew else "stored",
        "sampling": sampling_record(recipe),
        "stored": recipe.latents.precision,
        "computed": recipe.precision.posttrain,
        "seed": recipe.seed,
        "views": 1,
        "flip": False,
        "spec": store.manifest["spec"],
        "class_names": store.class_names,
        "shards": [min(shard, posttrain.pairs - first) for first in range(0, posttrain.pairs, shard)],
    }


def cost_of_pairs(folder: Path) -> dict[str, float]:
    """Seconds, added over processes, and network evaluations of one image each (a guided pair is one)."""
    shards = [load_shard(shard_file(folder, number))[0] for number in range(len(LatentStore(folder).counts))]
    return {name: sum(float(shard[name].double().sum()) for shard in shards) for name in ("seconds", "evaluations")}
