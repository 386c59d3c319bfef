"""The store of codes: safetensors shards read by memory map, and the manifest of what they depend on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.code import Code, Condition
from pipeline.files.writing import read_json, write_json, write_tensors
from pipeline.latents.code_source import CodeBatch, CodeSource
from pipeline.latents.packing import PACKED, read_packed

FORMAT = 2
MANIFEST = "manifest.json"
FEATURE = "feature."  # before the term of a loss, the name of a tensor that its teacher has made


class LatentStore(CodeSource):
    """What `pipeline.latents.encoding` wrote: shards of [rows, views, ...], the views of a row as in `Images.views`.

    Raises ValueError for a folder that holds no store, one that is not finished, and one with a shard that is cut, of
    another store or in another's place. Shards are mapped when they are first read, once a process; a pickled store
    maps them anew.
    """

    def __init__(self, folder: Path):
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            raise ValueError(f"{folder} holds no codes: there is no {MANIFEST}")
        manifest = read_json(folder / MANIFEST)
        if manifest["format"] != FORMAT:
            raise ValueError(f"{folder} is of format {manifest['format']}, this version reads {FORMAT}")
        if not manifest["shards"]:
            raise ValueError(f"{folder} holds no codes: latents.store was false; set it to true and encode")
        super().__init__(folder, manifest)
        self.counts: list[int] = manifest["shards"]
        for number in range(len(self.counts)):
            if not shard_file(folder, number).exists():
                raise ValueError(f"{folder} is not finished: {shard_file(folder, number).name} is missing")
            check_shard(folder, manifest, number)
        self._shards: tuple[list[dict[str, Tensor]], Tensor] | None = None

    def __len__(self) -> int:
        return sum(self.counts)

    def batch(self, indices: Tensor, seeds: Tensor) -> CodeBatch:
        return self._read(indices, self.chosen(seeds))

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

    def _read(self, indices: Tensor, views: Tensor) -> CodeBatch:
        shards, labels = self._opened()
        places = (indices % self.counts[0]) * self.views + views
        where = list(zip((indices // self.counts[0]).tolist(), places.tolist()))
        names = ("z", "std", "ids", "class_token")
        z, std, ids, token = (_gather([shard.get(name) for shard in shards], where) for name in names)
        packed = _gather([shard.get(PACKED) for shard in shards], where)
        ids = ids if packed is None else read_packed(packed, self.spec)
        stored = [name for name in shards[0] if name.startswith(FEATURE)]
        features = {name.removeprefix(FEATURE): _gather([shard[name] for shard in shards], where) for name in stored}
        condition = Condition(labels[indices]) if self.class_names else None
        return CodeBatch(Code(z, ids, token), std, condition, features)

    def _opened(self) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The shards' tensors [rows * views, ...], mapped, and all labels."""
        if self._shards is None:
            shards = [load_shard(shard_file(self.folder, number))[0] for number in range(len(self.counts))]
            labels = torch.cat([shard.pop("labels", torch.empty(0)) for shard in shards])
            self._shards = [{name: t.flatten(0, 1) for name, t in shard.items()} for shard in shards], labels
        return self._shards


def _gather(shards: list[Tensor | None], where: list[tuple[int, int]]) -> Tensor | None:
    """Rows (shard, place) as float32 or int64, [B, ...]; None when there is no such tensor.

    Copied and converted row by row in one call. Done for the batch as a whole it is read and written twice, and the
    threads that torch starts for that wait for each other on a busy machine: 32,000 codes a second for 140,000.
    """
    if shards[0] is None:
        return None
    rows = [shards[shard][place] for shard, place in where]
    dtype = torch.float32 if rows[0].is_floating_point() else torch.int64
    out = torch.empty(len(rows), *rows[0].shape, dtype=dtype)
    torch._foreach_copy_(list(out.unbind()), rows)
    return out


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"codes_{number:05d}.safetensors"


def load_shard(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A shard's tensors, mapped and not read, and its metadata."""
    with open_shard(file) as shard:
        return {name: shard.get_tensor(name) for name in shard.keys()}, shard.metadata() or {}  # noqa: SIM118


def open_shard(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete it and encode again") from error


def check_shard(folder: Path, manifest: dict[str, Any], number: int, content: bool = False) -> None:
    """ValueError unless the shard is of this store and in its place; with `content` it is read, and its sha256 too."""
    file = shard_file(folder, number)
    with open_shard(file) as shard:
        metadata = shard.metadata() or {}
        counts = {shard.get_slice(name).get_shape()[0] for name in shard.keys()}  # noqa: SIM118
    whole = metadata.get("manifest") == key_of(manifest) and metadata.get("number", str(number)) == str(number)
    if content and whole:
        whole = metadata.get("sha256") == sha256_of(load_shard(file)[0])
    if not whole or counts != {manifest["shards"][number]}:
        raise ValueError(f"{file} is damaged or of another store; delete it and encode again")


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_json(folder / MANIFEST, manifest, indent=1)


def write_shard(folder: Path, manifest: dict[str, Any], number: int, tensors: dict[str, Tensor]) -> None:
    """`tensors` are z, std, ids (or packed ones), class_token, features [rows, views, ...] and labels [rows].

    The shard knows its store and its content.
    """
    metadata = {"manifest": key_of(manifest), "number": str(number), "sha256": sha256_of(tensors)}
    write_tensors(shard_file(folder, number), tensors, metadata)


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def key_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
