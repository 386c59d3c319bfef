"""The table of captions that `encode_text` writes: features of distinct captions, and the captions of every image."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.captions.collecting import CollectedCaptions
from pipeline.code import Condition, TextSpec
from pipeline.draws import uniform_by_seed
from pipeline.files.shards import MANIFEST, check_shard, gather, load_shard, shard_file
from pipeline.files.writing import read_json, write_json, write_tensors
from pipeline.recipes.building import halves_with_captions, reads_captions
from pipeline.recipes.schema import Recipe

FORMAT = 1
FOLDER = "text"  # the artefact
OF = "captions"  # what files of features are called after
TEXTS = "texts.json"
ENCODER = "encoder"  # folder of the encoder, in that of the table


class CaptionTable:
    """Features of distinct captions by number; number 0 is the empty caption. They are mapped, not read, by shard.

    Raises ValueError for a folder that holds no table, one that is not finished, and a shard that is not of it.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).exists():
            raise ValueError(f"{folder} holds no captions: there is no {MANIFEST}; run the stage encode-text")
        self.manifest: dict[str, Any] = read_json(self.folder / MANIFEST)
        if self.manifest.get("of") != OF or self.manifest["format"] != FORMAT:
            raise ValueError(f"{folder} holds no captions of format {FORMAT}, which this version reads")
        self.counts: list[int] = self.manifest["shards"]
        self.spec = TextSpec(**self.manifest["spec"])
        for number in range(len(self.counts)):
            if not shard_file(self.folder, number, OF).exists():
                raise ValueError(f"{folder} is not finished: {shard_file(self.folder, number, OF).name} is missing")
            check_shard(self.folder, self.manifest, number)

    def __len__(self) -> int:
        return sum(self.counts)

    def features(self, numbers: Tensor) -> Condition:
        """Of captions [B] by number: `text` [B, T, layers * dim] float32, `text_mask`, and `pooled` if there is one."""
        where = list(zip((numbers // self.counts[0]).tolist(), (numbers % self.counts[0]).tolist()))
        text, mask, pooled = (
            gather([shard.get(name) for shard in self._shards], where) for name in ("text", "text_mask", "pooled")
        )
        return Condition(None, text, mask.bool(), pooled)

    @cached_property
    def empty(self) -> Condition:
        """The features of the empty caption, a row."""
        return self.features(torch.zeros(1, dtype=torch.int64))

    @cached_property
    def texts(self) -> list[str]:
        """The captions by number."""
        return read_json(self.folder / TEXTS)

    @cached_property
    def _shards(self) -> list[dict[str, Tensor]]:
        return [load_shard(shard_file(self.folder, number, OF))[0] for number in range(len(self.counts))]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_shards", "texts", "empty")}


class Captions:
    """The captions of the images of one split, as conditions by the number of an image in its source.

    Of several captions seeds draw one, all alike; without `drawn` the first is taken, as it is without seeds.
    """

    def __init__(self, folder: Path, split: str, drawn: bool = True):
        self.table, self.split, self.drawn = CaptionTable(folder), split, drawn
        rows = load_file(rows_file(self.table.folder, split))
        self.offsets = rows["offsets"]
        self.captions = torch.cat([rows["captions"].long(), torch.zeros(1, dtype=torch.int64)])  # the last is empty

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def spec(self) -> TextSpec:
        return self.table.spec

    def numbers(self, rows: Tensor, seeds: Tensor | None = None) -> Tensor:
        """The number of one caption of each image, [B]; that of an image without a caption is 0, the empty one."""
        first, count = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        drawn = torch.zeros_like(first)
        if seeds is not None and self.drawn:
            drawn = (uniform_by_seed(seeds, "caption").double() * count).long()
        return self.captions[torch.where(count > 0, first + drawn, -1)]

    def condition(self, rows: Tensor, seeds: Tensor | None = None) -> Condition:
        """Features of one caption of each image [B], on the CPU, without labels; see `numbers` for which."""
        return self.table.features(self.numbers(rows, seeds))

    def texts(self, rows: Tensor, seeds: Tensor | None = None) -> list[str]:
        """The captions that `condition` is of."""
        return [self.table.texts[number] for number in self.numbers(rows, seeds).tolist()]


def rows_file(folder: Path, split: str) -> Path:
    return folder / f"rows_{split}.safetensors"


def write_rows(folder: Path, collected: CollectedCaptions) -> None:
    """The texts of all captions, and those of every image by number."""
    write_json(folder / TEXTS, collected.texts, indent=0)
    for split, rows in collected.rows.items():
        write_tensors(rows_file(folder, split), {"offsets": rows.offsets, "captions": rows.captions.to(torch.int32)})


def describe(collected: CollectedCaptions, encoder: dict[str, Any], spec: TextSpec, settings: dict[str, Any]) -> Any:
    """The manifest: all that the features depend on, as JSON values; `settings` hold the rows of a shard, `shard`."""
    count, shard = len(collected.texts), settings.pop("shard")
    manifest = {
        "format": FORMAT,
        "of": OF,
        "unit": "caption",
        "encoder": encoder,
        "spec": vars(spec),
        "captions": {"fingerprint": collected.fingerprint(), "distinct": count}
        | {split: {"images": len(rows.offsets) - 1, "without": rows.without} for split, rows in collected.rows.items()},
        **settings,
        "shards": [min(shard, count - first) for first in range(0, count, shard)],
    }
    return json.loads(json.dumps(manifest))


def open_captions(recipe: Recipe, artefacts: Callable[[str], Path], split: str, artefact: str) -> Captions | None:
    """The captions of a split for the stage that makes `artefact`; None where it reads none.

    `artefacts` gives the folder of an artefact of the run. Stored codes that an encoder made by captions are of the
    first ones, and so these are taken, and none is drawn.
    """
    if not reads_captions(recipe, artefact):
        return None
    stored = recipe.latents.store and artefact not in ("tokenizer", "joint")
    return Captions(artefacts(FOLDER), split, drawn=not (stored and "encoder" in halves_with_captions(recipe)))
