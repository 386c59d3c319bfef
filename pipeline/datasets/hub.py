"""Hugging Face datasets: by id, or parquet files, webdataset tars, Arrow files and saved datasets on this machine."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.datasets.base import BrokenImage, Record, Source, Split, decode, set_aside
from pipeline.local_paths import given_path, may_be_hub_id

if TYPE_CHECKING:
    import datasets

READERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}  # of single files and of patterns


class Hub(Source):
    """`path` is an id, a folder (its files tell the format), a file or a pattern such as `shards/*.tar`.

    Columns are named as the data names them (a webdataset's are its suffixes: image=jpg label=cls caption=txt).
    Without `held_out_split` a fraction `held_out` of the training rows is set aside by number. A stream is pulled
    through once and its rows are kept, encoded as they came, in the cache of `datasets`, so that order and resume are
    as exact as without; `take` bounds the rows of a split. `attributes` are columns of yes and no, as CelebA has them:
    true, or a number above 0, is yes. Raises ValueError naming the columns when one is missing.
    """

    def __init__(
        self,
        path: str,
        image: str = "image",
        label: str | None = "label",
        caption: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        train_split: str = "train",
        held_out_split: str | None = None,
        held_out: float = 0.1,
        take: int | None = None,
        streaming: bool = False,
        attributes: list[str] | None = None,
        split: Split = "train",
    ):
        self.path, self.image, self.label, self.caption = path, image, label, caption
        self.attribute_names = list(attributes or ())
        columns = {"image": [image], "label": [label], "caption": [caption], "attributes": self.attribute_names}
        collection = _Collection(path, config, revision, take, streaming, columns)
        train = collection.rows(train_split)
        self.class_names = _class_names(train, label) if label else []
        self.rows = collection.rows(held_out_split) if held_out_split and split == "held_out" else train
        self.places = list(range(len(self.rows)))
        if not held_out_split:
            aside = set_aside(map(str, self.places), held_out)
            self.places = [row for row, a in enumerate(aside) if a == (split == "held_out")]
        self.numbers = {name: number for number, name in enumerate(self.class_names)}
        parts = (collection.identity, take, image, label, caption, train_split, held_out_split, held_out, split)
        parts += (tuple(self.attribute_names),) if self.attribute_names else ()
        self._fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> Record:
        row, name = self.rows[self.places[index]], f"row {self.places[index]} of {self.path}"
        stored = row[self.image]
        if not stored or (stored["bytes"] is None and not stored["path"]):
            raise BrokenImage(f"{name}: there is no image")
        name = f"{name} ({stored['path']})" if stored["path"] else name
        image = decode(stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"]), name)
        label = self._number(row[self.label], name) if self.label else None
        attributes = tuple(_yes(row[column], f"{name}: {column}") for column in self.attribute_names)
        return Record(image, label, row[self.caption] if self.caption else None, name, attributes)

    def fingerprint(self) -> str:
        """Of the files or the revision read, and of which rows and columns are taken."""
        return self._fingerprint

    def _number(self, label: str | int | None, name: str) -> int:
        number = self.numbers.get(label, -1) if isinstance(label, str) else label
        if number is None or not 0 <= number < len(self.class_names):
            raise ValueError(
                f"{name}: {label!r} is not one of the {len(self.class_names)} classes of the training split"
            )
        return number


class _Collection:
    """The splits of one collection, as map-style datasets of the wanted columns, with images left encoded."""

    def __init__(
        self,
        path: str,
        config: str | None,
        revision: str | None,
        take: int | None,
        streaming: bool,
        stated: dict[str, list[str | None]],
    ):
        self.path, self.take, self.streaming = path, take, streaming
        self.image, self.stated = stated["image"][0], stated
        self.columns = [column for columns in stated.values() for column in columns if column]
        folder = given_path(path)
        self.saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
        if self.saved:
            states = sorted(folder.rglob("state.json"))
            self.identity = hashlib.sha256(b"".join(state.read_bytes() for state in states)).hexdigest()
        else:
            self.builder = self._builder(folder, config, revision)
            self.identity = f"{self.builder.config_id} {self.builder.hash}"  # hashes of the files, or the commit

    def rows(self, split: str) -> "datasets.Dataset":
        from datasets.exceptions import DatasetsError

        try:
            return self._rows(split)
        except (OSError, ValueError, KeyError, DatasetsError) as error:
            if str(error).startswith("data.source"):
                raise
            raise ValueError(f"data.source: split {split!r} of {self.path}: {_line(error)}") from error

    def _rows(self, split: str) -> "datasets.Dataset":
        from datasets import DatasetDict, load_from_disk

        if self.saved:
            rows = load_from_disk(str(given_path(self.path)))
            if isinstance(rows, DatasetDict):
                if split not in rows:
                    raise ValueError(f"there is no such split; there are {', '.join(rows)}")
                rows = rows[split]
            rows = self._wanted(rows)
        elif self.streaming:
            return self._kept(split)
        else:
            self.builder.download_and_prepare()
            rows = self._wanted(self.builder.as_dataset(split=split))
        return rows if self.take is None else rows.select(range(min(self.take, len(rows))))

    def _builder(self, folder: Path, config: str | None, revision: str | None) -> "datasets.DatasetBuilder":
        from datasets import load_dataset_builder

        reader = READERS.get(folder.suffix)
        try:
            if reader:
                return load_dataset_builder(reader, data_files=str(folder))
            if not folder.is_dir() and "/" in self.path and not may_be_hub_id(self.path):
                raise ValueError("there is no such file or folder")
            return load_dataset_builder(str(folder) if folder.is_dir() else self.path, config, revision=revision)
        except (OSError, ValueError) as error:
            raise ValueError(f"data.source.path: {self.path!r} cannot be read: {_line(error)}") from error

    def _wanted(self, rows: Any) -> Any:
        """Only the named columns, images encoded; ValueError naming what there is when one is missing."""
        from datasets import Image

        there = list(rows.features)
        for key, columns in self.stated.items():
            if missing := [column for column in columns if column and column not in there]:
                none = "" if key == "image" else " (or null)"
                what = f"data.source.{key}: {self.path} has no column {missing[0]!r}"
                raise ValueError(f"{what}; set {key}{none} to one of: {', '.join(there)}")
        image = rows.features[self.image]
        if not isinstance(image, Image) and getattr(image, "dtype", "") not in ("binary", "large_binary", "string"):
            raise ValueError(f"data.source.image: column {self.image!r} of {self.path} holds no images but {image}")
        return rows.select_columns(self.columns).cast_column(self.image, Image(decode=False))

    def _kept(self, split: str) -> "datasets.Dataset":
        """The stream's rows, pulled through once and kept in the cache under the collection's identity."""
        from datasets import Dataset

        stream = self.builder.as_streaming_dataset(split=split)
        if stream.features is None:  # formats that learn their columns by reading, such as JSON lines
            stream = stream.cast(Dataset.from_list(list(stream.take(1))).features)
        stream = self._wanted(stream)
        if self.take is not None:
            stream = stream.take(self.take)
        key = hashlib.sha256(repr((self.path, self.identity, split, self.take, self.columns)).encode()).hexdigest()[:16]
        source = {"stream": stream, "image": self.image}
        return Dataset.from_generator(_pull, features=stream.features, gen_kwargs=source, fingerprint=key)


def _pull(stream: "datasets.IterableDataset", image: str) -> Iterator[dict[str, Any]]:
    """Rows with their images' bytes at hand."""
    import fsspec

    for row in stream:
        stored = row[image]
        if stored and stored["bytes"] is None and stored["path"]:
            with fsspec.open(stored["path"], "rb") as file:
                row = row | {image: stored | {"bytes": file.read()}}
        yield row


def _class_names(rows: "datasets.Dataset", label: str) -> list[str]:
    """A ClassLabel's own names, else the texts in sorted order, else the numbers up to the largest."""
    feature = rows.features[label]
    if getattr(feature, "names", None):
        return list(feature.names)
    values = [value for value in rows.unique(label) if value is not None]
    if all(isinstance(value, str) for value in values):
        return sorted(values)
    if all(isinstance(value, int) for value in values):
        return [str(number) for number in range(max(values, default=-1) + 1)]
    raise ValueError(f"data.source.label: column {label!r} holds {feature.dtype}, neither whole numbers nor texts")


def _yes(value: bool | int | None, what: str) -> bool:
    if not isinstance(value, int):
        raise ValueError(f"{what} is {value!r}; an attribute is true or false, 1 or 0, or 1 or -1")
    return value > 0


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
