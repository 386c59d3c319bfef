"""From images to the store of codes: by any number of processes, resumed where it stopped."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from pipeline.code import LatentSpec
from pipeline.draws import ImageDraws, mix
from pipeline.files.writing import read_json
from pipeline.frozen.class_token import ClassTokenFeature
from pipeline.images.ahead import read_ahead
from pipeline.images.reading import ImageBatch, Images
from pipeline.latents.store import (
    FEATURE,
    FORMAT,
    MANIFEST,
    check_shard,
    sha256_of,
    shard_file,
    write_manifest,
    write_shard,
)
from pipeline.nn.devices import copies_pinned
from pipeline.recipes.latents import Latents
from pipeline.runs.precision import DTYPES, arithmetic
from pipeline.teachers.base import Tap
from pipeline.tokenizers.base import Tokenizer

Grid = Sequence[int]  # height and width


@dataclass(frozen=True)
class EncodingPlan:
    """What the stored codes of images depend on, besides the images and the tokenizer.

    `taps` are maps of teachers by the term of a loss, each with the grid that it is stored on; `class_feature` gives
    the class token.
    """

    latents: Latents
    seed: int
    precision: str
    taps: Mapping[str, tuple[Tap, Grid]] = field(default_factory=dict)
    class_feature: ClassTokenFeature | None = None


def encode(tokenizer: Tokenizer, images: Images, plan: EncodingPlan, folder: Path, accelerator: Accelerator) -> None:
    """Write the codes of `images` at the tokenizer's unit scale to `folder`, each process a part of the shards.

    The code of an image is a function of (tokenizer, image, seed, its index), up to rounding: not of the batch or the
    number of processes. The features of `plan.taps` and the class tokens, of the same views, are written beside the
    codes. Finished shards are kept. Raises ValueError when the folder was begun under another plan.
    """
    encoder = Encoder(tokenizer, images, plan, accelerator.device)

    def make(batches: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        for rows, tensors in zip(batches, encoder(batches)):
            yield as_stored(tensors, plan.latents.precision, tokenizer.spec, rows)

    fill(folder, describe(tokenizer, images, plan), make, plan.latents.batch, accelerator, "encoding")


def fill(
    folder: Path,
    manifest: dict[str, Any],
    make: Callable[[Sequence[Tensor]], Iterator[dict[str, Tensor]]],
    batch: int,
    accelerator: Accelerator,
    doing: str,
) -> None:
    """Write a store of codes to `folder`, each process a part of the shards; finished shards that are whole are kept.

    `make` yields the tensors that are stored of each of several batches of rows [B] of the store. Raises ValueError
    when the folder was begun with another manifest.
    """
    if accelerator.is_main_process and not (folder / MANIFEST).exists():
        write_manifest(folder, manifest)
    accelerator.wait_for_everyone()
    refuse_stale(folder, manifest)
    counts = manifest["shards"]
    mine = range(accelerator.process_index, len(counts), accelerator.num_processes)
    todo = [number for number in mine if not is_whole(folder, manifest, number)]
    total = sum(counts[number] for number in todo)
    batches = {n: (torch.arange(counts[n]) + n * counts[0]).split(batch) for n in todo}
    made = make([rows for number in todo for rows in batches[number]])
    with tqdm(total=total, desc=doing, unit="img", disable=not accelerator.is_main_process) as progress:
        for number in todo:
            parts = []
            for rows in batches[number]:
                parts.append(next(made))
                progress.update(len(rows))
            write_shard(
                folder, manifest, number, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            )
    accelerator.wait_for_everyone()


def is_whole(folder: Path, manifest: dict[str, Any], number: int) -> bool:
    """Whether a shard is there and is what was written; one that is not is named in a line."""
    if not shard_file(folder, number).exists():
        return False
    try:
        check_shard(folder, manifest, number, content=True)
    except ValueError as error:
        print(f"{error}: it is made again")
        return False
    return True


@dataclass(frozen=True)
class ViewReader:
    """Rows [B] to their views, in the order of `Images.views`."""

    images: Images
    crops: tuple[float, ...]
    flip: bool

    def __call__(self, rows: Tensor) -> list[ImageBatch]:
        return list(self.images.views(rows, self.crops, self.flip))


class Encoder:
    """Rows of a collection to the codes of their views, a view of all rows at a time, in the given precision."""

    def __init__(self, tokenizer: Tokenizer, images: Images, plan: EncodingPlan, device: torch.device):
        self.tokenizer = tokenizer.to(device, memory_format=torch.channels_last).eval()
        self.images, self.plan, self.latents, self.device = images, plan, plan.latents, device

    def __call__(self, batches: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        """`encode` of several batches of rows [B], one after the other; their images are read ahead by data.workers."""
        reader = ViewReader(self.images, tuple(self.latents.crops), self.latents.flip)
        read = read_ahead(reader, batches, self.images.data.workers, copies_pinned(self.device))
        return (self.encode(rows, views) for rows, views in zip(batches, read))

    @torch.no_grad()
    def encode(self, rows: Tensor, images: Sequence[ImageBatch]) -> dict[str, Tensor]:
        """Of rows [B], whose views are `images`: on the CPU, `z` [B, views, N, C] float32, or `ids`; and `labels` [B].

        For moments also `std`; of every tap `feature.<term>` [B, views, M, width], and `class_token` [B, views, width]
        where there is one.
        """
        views = []
        for number, batch in enumerate(images):
            views.append(self._codes(batch.images, rows, number))
        tensors = {name: torch.stack([view[name] for view in views], dim=1) for name in views[0]}
        return tensors if batch.condition is None else tensors | {"labels": batch.condition.labels}

    def _codes(self, pixels: Tensor, rows: Tensor, view: int) -> dict[str, Tensor]:
        pixels = pixels.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        with arithmetic(self.device, self.plan.precision):
            if self.tokenizer.spec.vocab:
                tensors = {"ids": self.tokenizer.encode(pixels).ids}
            elif self.latents.posterior == "moments":
                tensors = dict(zip(("z", "std"), (part.float() for part in self.tokenizer.moments(pixels))))
            else:
                tensors = {"z": self.tokenizer.encode(pixels, draws=self._draws(rows, view)).z.float()}
            if self.plan.class_feature is not None:
                tensors["class_token"] = self.plan.class_feature(pixels)
            tensors |= {FEATURE + term: tap(pixels, grid).float() for term, (tap, grid) in self.plan.taps.items()}
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    def _draws(self, rows: Tensor, view: int) -> ImageDraws | None:
        if self.latents.posterior != "sample":
            return None
        place, mirrored = divmod(view, 2) if self.latents.flip else (view, 0)
        name = ("mirror" if mirrored else "image") + (f" {place}" if place else "")
        return ImageDraws.from_seeds(
            [mix(self.plan.seed, "posterior", name, row) for row in rows.tolist()], self.device
        )


def describe(tokenizer: Tokenizer, images: Images, plan: EncodingPlan) -> dict[str, Any]:
    """Everything that the codes depend on, and what a reader needs to know, as JSON values."""
    count, data, latents = len(images), images.data, plan.latents
    if not count:
        raise ValueError("the training split is empty; lower data.source.held_out, or name a source that has images")
    manifest = {
        "format": FORMAT,
        "tokenizer": {
            "kind": type(tokenizer).__name__,
            "config": {name: value for name, value in tokenizer.config.items() if not name.startswith("_")},
            "weights": sha256_of(tokenizer.state_dict()),
        },
        "data": {
            "fingerprint": images.fingerprint(),
            "images": count,
            "size": data.image_size,
            "crop": "center",  # codes are not of random crops, whatever the tokenizer was trained on
            "resize": data.resize,
        },
        "posterior": latents.posterior,
        "crops": list(latents.crops),
        "flip": latents.flip,
        "views": latents.views,
        "stored": latents.precision,
        "computed": plan.precision,
        "seed": plan.seed,
        "mean": tokenizer.mean.tolist(),
        "std": tokenizer.std.tolist(),
        "spec": asdict(tokenizer.spec),
        "class_names": images.class_names,
        "shards": [min(latents.shard, count - first) for first in range(0, count, latents.shard)],
    }
    if plan.taps:
        manifest["features"] = {term: describe_tap(*tap) for term, tap in plan.taps.items()}
    if (feature := plan.class_feature) is not None:
        weights = sha256_of(feature.state_dict())
        stored = {"teacher": feature.name, "width": feature.width, "weights": weights, "norm": feature.norm}
        manifest["class_token"] = stored
    return json.loads(json.dumps(manifest))


def describe_tap(tap: Tap, grid: Grid) -> dict[str, Any]:
    """What stored features depend on, besides the images."""
    weights = sha256_of(tap.state_dict())
    described = {"teacher": tap.name, "map": tap.index, "width": tap.width, "grid": list(grid), "weights": weights}
    return described | ({"class_token": True} if tap.class_token else {})


def refuse_stale(folder: Path, manifest: dict[str, Any]) -> None:
    """ValueError naming the first difference between a folder's manifest and the one that would be written."""
    there = _flat(read_json(folder / MANIFEST))
    wanted = _flat(manifest)
    for name in [*wanted, *there]:
        if there.get(name) != wanted.get(name):
            was, now = _short(there.get(name)), _short(wanted.get(name))
            raise ValueError(f"{folder} holds codes made with {name} {was}, not {now}; delete it to encode anew")


def as_stored(tensors: dict[str, Tensor], precision: str, spec: LatentSpec, rows: Tensor) -> dict[str, Tensor]:
    """The tensors in the types they are stored in; FloatingPointError naming the rows of codes that do not fit."""
    stored = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            stored[name] = tensor.to(DTYPES[precision])
            if not stored[name].isfinite().all():
                raise FloatingPointError(f"the codes of images {int(rows[0])} to {int(rows[-1])} are not all finite")
        elif name == "ids":
            stored[name] = tensor.to(torch.uint16 if spec.vocab <= 2**16 else torch.int32)
        else:
            stored[name] = tensor
    return stored


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
