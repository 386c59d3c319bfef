"""Stores: tensors of many rows in safetensors shards that are read by memory map, and what they depend on.

The manifest of a store holds `shards`, the rows of each, all that the content depends on, and in `of` what it is.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from pipeline.files.writing import read_json, write_json, write_tensors

MANIFEST = "manifest.json"
CODES = "codes"


def fill(
    folder: Path,
    manifest: dict[str, Any],
    make: Callable[[Sequence[Tensor]], Iterator[dict[str, Tensor]]],
    batch: int,
    accelerator: Accelerator,
    doing: str,
) -> None:
    """Write a store to `folder`, each process a part of the shards; finished shards that are whole are kept.

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
    unit, hidden = manifest.get("unit", "img"), not accelerator.is_main_process
    with tqdm(total=total, desc=doing, unit=unit, disable=hidden) as progress:
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
    if not shard_file(folder, number, what_is_stored(manifest)).exists():
        return False
    try:
        check_shard(folder, manifest, number, content=True)
    except ValueError as error:
        print(f"{error}: it is made again")
        return False
    return True


def refuse_stale(folder: Path, manifest: dict[str, Any]) -> None:
    """ValueError naming the first difference between a folder's manifest and the one that would be written."""
    there = _flat(read_json(folder / MANIFEST))
    wanted = _flat(manifest)
    for name in [*wanted, *there]:
        if there.get(name) != wanted.get(name):
            was, now = _short(there.get(name)), _short(wanted.get(name))
            of = what_is_stored(manifest)
            raise ValueError(f"{folder} holds {of} made with {name} {was}, not {now}; delete it to encode anew")


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def gather(shards: list[Tensor | None], where: list[tuple[int, int]]) -> Tensor | None:
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


def shard_file(folder: Path, number: int, of: str = CODES) -> Path:
    return folder / f"{of}_{number:05d}.safetensors"


def what_is_stored(manifest: dict[str, Any]) -> str:
    """What the files of a store are called after."""
    return manifest.get("of", CODES)


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
    file = shard_file(folder, number, what_is_stored(manifest))
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
    """Tensors [rows, ...] to their file; the shard knows its store and its content."""
    metadata = {"manifest": key_of(manifest), "number": str(number), "sha256": sha256_of(tensors)}
    write_tensors(shard_file(folder, number, what_is_stored(manifest)), tensors, metadata)


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
