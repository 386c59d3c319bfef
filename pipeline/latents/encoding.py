"""From images to the store of codes: by any number of processes, resumed where it stopped."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import Draws, ImageDraws, mix
from pipeline.files.shards import fill, sha256_of
from pipeline.frozen.class_token import ClassTokenFeature
from pipeline.images.ahead import read_ahead
from pipeline.images.reading import ImageBatch, Images
from pipeline.latents.code_source import CodeBatch
from pipeline.latents.packing import store_ids
from pipeline.latents.store import FEATURE, FORMAT, ROWS
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
    encoder = Encoder(tokenizer, plan, accelerator.device)

    def make(batches: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        for rows, tensors in zip(batches, encode_views(encoder, images, batches)):
            yield as_stored(tensors, plan.latents.precision, tokenizer.spec, rows)

    fill(folder, describe(tokenizer, images, plan), make, plan.latents.batch, accelerator, "encoding")


@dataclass(frozen=True)
class ViewReader:
    """Rows [B] to their views, in the order of `Images.views`."""

    images: Images
    crops: tuple[float, ...]
    flip: bool

    def __call__(self, rows: Tensor) -> list[ImageBatch]:
        return list(self.images.views(rows, self.crops, self.flip))


class Encoder:
    """Images to their codes by a frozen tokenizer, with the class tokens and features of a plan, in its precision."""

    def __init__(self, tokenizer: Tokenizer, plan: EncodingPlan, device: torch.device):
        self.tokenizer = tokenizer.to(device, memory_format=torch.channels_last).eval()
        self.plan, self.device = plan, device

    @torch.no_grad()
    def codes(self, images: Tensor, draws: Draws, condition: Condition | None = None) -> dict[str, Tensor]:
        """Of images [B, C, H, W], on the device: `z` [B, N, C] float32, a sample by `draws` if the plan wants samples,
        or `ids`.

        For moments also `std`; of every tap `feature.<term>` [B, M, width], and `class_token` [B, width] where there is
        one.
        """
        pixels = images.to(self.device, non_blocking=images.is_pinned(), memory_format=torch.channels_last)
        with arithmetic(self.device, self.plan.precision):
            tensors = self._tokens(pixels, draws, condition and condition.to(self.device))
            if self.plan.class_feature is not None:
                tensors["class_token"] = self.plan.class_feature(pixels)
            tensors |= {FEATURE + term: tap(pixels, grid).float() for term, (tap, grid) in self.plan.taps.items()}
        return tensors

    def _tokens(self, pixels: Tensor, draws: Draws, condition: Condition | None) -> dict[str, Tensor]:
        posterior = self.plan.latents.posterior
        if self.tokenizer.spec.vocab:
            return {"ids": self.tokenizer.encode(pixels, condition).ids}
        if posterior == "moments":
            return dict(zip(("z", "std"), (part.float() for part in self.tokenizer.moments(pixels, condition))))
        drawn = draws if posterior == "sample" else None
        return {"z": self.tokenizer.encode(pixels, condition, draws=drawn).z.float()}

    def encode(self, batch: ImageBatch, draws: Draws) -> CodeBatch:
        """The codes of a batch, with its images, for a training that reads no stored ones."""
        codes = self.codes(batch.images, draws, batch.condition)
        return replace(code_batch(codes, batch.condition), images=batch.images)

    def networks(self) -> list[nn.Module]:
        """All that encoding computes by."""
        taps = [tap for tap, _ in self.plan.taps.values()]
        return [self.tokenizer, *taps, *([] if self.plan.class_feature is None else [self.plan.class_feature])]

    def view(self, batch: ImageBatch, rows: Tensor, number: int) -> dict[str, Tensor]:
        """`codes` of view `number` of rows [B] of a collection, on the CPU, sampled by draws of row and view."""
        latents = self.plan.latents
        place, mirrored = divmod(number, 2) if latents.flip else (number, 0)
        name = ("mirror" if mirrored else "image") + (f" {place}" if place else "")
        seeds = [mix(self.plan.seed, "posterior", name, row) for row in rows.tolist()]
        tensors = self.codes(batch.images, ImageDraws.from_seeds(seeds, self.device), batch.condition)
        return {name: tensor.cpu() for name, tensor in tensors.items()}


def code_batch(tensors: Mapping[str, Tensor], condition: Condition | None) -> CodeBatch:
    """The tensors of `Encoder.codes` as a batch; features are left out."""
    code = Code(tensors.get("z"), tensors.get("ids"), tensors.get("class_token"))
    return CodeBatch(code, tensors.get("std"), condition)


def encode_views(encoder: Encoder, images: Images, batches: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
    """Of several batches of rows [B], one after the other: `Encoder.codes` of all their views, [B, views, ...].

    On the CPU, with `labels` and `rows` [B]; the images are read ahead by data.workers.
    """
    latents = encoder.plan.latents
    reader = ViewReader(images, tuple(latents.crops), latents.flip)
    for rows, views in zip(batches, read_ahead(reader, batches, images.data.workers, copies_pinned(encoder.device))):
        parts = [encoder.view(view, rows, number) for number, view in enumerate(views)]
        tensors = {name: torch.stack([part[name] for part in parts], dim=1) for name in parts[0]}
        tensors[ROWS] = views[0].rows.to(torch.int32)
        labels = None if views[0].condition is None else views[0].condition.labels
        yield tensors if labels is None else tensors | {"labels": labels}


def describe(tokenizer: Tokenizer, images: Images, plan: EncodingPlan) -> dict[str, Any]:
    """Everything that the codes depend on, and what a reader needs to know, as JSON values."""
    count, data, latents = len(images), images.data, plan.latents
    stored = count if latents.store else 0
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
            "crop": data.crop if latents.augment else "center",  # whatever the tokenizer was trained on
            "resize": data.resize,
        },
        "posterior": latents.posterior,
        "crops": list(latents.crops),
        "flip": latents.flip,
        "views": latents.views,
        "stored": latents.precision if latents.store else None,
        "computed": plan.precision,
        "seed": plan.seed,
        "mean": tokenizer.mean.tolist(),
        "std": tokenizer.std.tolist(),
        "spec": asdict(tokenizer.spec),
        "class_names": images.class_names,
        "shards": [min(latents.shard, count - first) for first in range(0, stored, latents.shard)],
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


def as_stored(tensors: dict[str, Tensor], precision: str, spec: LatentSpec, rows: Tensor) -> dict[str, Tensor]:
    """The tensors in the types they are stored in; FloatingPointError naming the rows of codes that do not fit."""
    stored = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            stored[name] = tensor.to(DTYPES[precision])
            if not stored[name].isfinite().all():
                raise FloatingPointError(f"the codes of images {int(rows[0])} to {int(rows[-1])} are not all finite")
        elif name == "ids":
            stored |= store_ids(tensor, spec)
        else:
            stored[name] = tensor
    return stored
