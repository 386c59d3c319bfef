"""The store of codes: safetensors shards read by memory map, and the manifest of what they depend on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.captions.table import Captions
from pipeline.code import Code, Condition
from pipeline.files.shards import MANIFEST, check_shard, gather, load_shard, shard_file
from pipeline.files.writing import read_json
from pipeline.latents.code_source import CodeBatch, CodeSource
from pipeline.latents.packing import PACKED, read_packed

FORMAT = 2
ROWS = "rows"  # [rows] int32, the record that each row is of, where a broken one gave way to another
FEATURE = "feature."  # before the term of a loss, the name of a tensor that its teacher has made


class LatentStore(CodeSource):
    """What `pipeline.latents.encoding` wrote: shards of [rows, views, ...], the views of a row as in `Images.views`.

    Raises ValueError for a folder that holds no store, one that is not finished, and one with a shard that is cut, of
    another store or in another's place. Shards are mapped when they are first read, once a process; a pickled store
    maps them anew. With `captions` conditions hold features of them: in `batch` of one drawn by seed, else the first.
    """

    def __init__(self, folder: Path, captions: Captions | None = None):
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            raise ValueError(f"{folder} holds no codes: there is no {MANIFEST}")
        manifest = read_json(folder / MANIFEST)
        if manifest["format"] != FORMAT:
            raise ValueError(f"{folder} is of format {manifest['format']}, this version reads {FORMAT}")
        if not manifest["shards"]:
            raise ValueError(f"{folder} holds no codes: latents.store was false; set it to true and encode")
        super().__init__(folder, manifest)
        self.captions = captions
        self.counts: list[int] = manifest["shards"]
        for number in range(len(self.counts)):
            if not shard_file(folder, number).exists():
                raise ValueError(f"{folder} is not finished: {shard_file(folder, number).name} is missing")
            check_shard(folder, manifest, number)
        self._shards: tuple[list[dict[str, Tensor]], Tensor] | None = None

    def __len__(self) -> int:
        return sum(self.counts)

    def batch(self, indices: Tensor, seeds: Tensor) -> CodeBatch:
        return self._read(indices, self.chosen(seeds), seeds)

    def plain(self, indices: Tensor, flip: bool = False) -> CodeBatch:
        if flip and not self.manifest["flip"]:
            raise ValueError("no flips are stored; set latents.flip=true and encode again")
        return self._read(indices, torch.full_like(indices, int(flip)))

    def verify(self) -> None:
        """Read every shard whole; ValueError naming the first that is not what was written."""
        for number in range(len(self.counts)):
            check_shard(self.folder, self.manifest, number, content=True)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": None}

    def _read(self, indices: Tensor, views: Tensor, seeds: Tensor | None = None) -> CodeBatch:
        shards, labels, rows = self._opened()
        places = (indices % self.counts[0]) * self.views + views
        where = list(zip((indices // self.counts[0]).tolist(), places.tolist()))
        names = ("z", "std", "ids", "class_token")
        z, std, ids, token = (gather([shard.get(name) for shard in shards], where) for name in names)
        packed = gather([shard.get(PACKED) for shard in shards], where)
        ids = ids if packed is None else read_packed(packed, self.spec)
        stored = [name for name in shards[0] if name.startswith(FEATURE)]
        features = {name.removeprefix(FEATURE): gather([shard[name] for shard in shards], where) for name in stored}
        condition = Condition(labels[indices]) if self.class_names else None
        if self.captions is not None:
            of_captions = self.captions.condition(rows[indices].long(), seeds)
            condition = replace(of_captions, labels=None if condition is None else condition.labels)
        return CodeBatch(Code(z, ids, token), std, condition, features)

    def _opened(self) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
        """The shards' tensors [rows * views, ...], mapped, all labels, and the record that each row is of."""
        if self._shards is None:
            shards = [load_shard(shard_file(self.folder, number))[0] for number in range(len(self.counts))]
            labels = torch.cat([shard.pop("labels", torch.empty(0)) for shard in shards])
            firsts = [number * self.counts[0] for number in range(len(self.counts))]
            own = [torch.arange(first, first + count) for first, count in zip(firsts, self.counts)]
            rows = torch.cat([shard.pop(ROWS, number) for shard, number in zip(shards, own)])
            self._shards = [{name: t.flatten(0, 1) for name, t in shard.items()} for shard in shards], labels, rows
        return self._shards
