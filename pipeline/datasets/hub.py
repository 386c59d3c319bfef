"""Hugging Face datasets: by id, or parquet, webdataset tars, Arrow files and saved datasets on this machine."""

import hashlib
import io
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.datasets.base import BrokenImage, MissingImages, Record, Source, Split, decode, set_aside
from pipeline.files.caption_files import as_list, tidy
from pipeline.files.content import hash_files
from pipeline.files.data_files import file_inside, find_data_files
from pipeline.files.label_columns import Classes, check_attributes, read_labels
from pipeline.files.paths import given_path, may_be_hub_id
from pipeline.ranges import Count, FractionBelowOne

if TYPE_CHECKING:
    import datasets

READERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}  # of single files and of patterns


class Hub(Source):
    """`path` is an id, a folder (its files tell the format), a file or a pattern such as `shards/*.tar`.

    Columns are named as the data names them (a webdataset's are its suffixes: image=jpg label=cls caption=txt). Labels
    are texts, whole numbers or true and false; a class is a value that an image of the training split has, so that
    numbers with gaps make no class without images. An image is its bytes; one that is a path is read below the folder
    `files` alone, and without it refused, since data from elsewhere could name any file of this machine.
    Without `held_out_split` a fraction `held_out` of the training rows is set aside by number; each class keeps one for
    training. A stream is pulled through once and its rows are kept, encoded as they came, in the cache of `datasets`,
    so that order and resume are as exact as without; `take` bounds the rows of a split. `attributes` are columns of yes
    and no, as CelebA has them: true, or a number above 0, is yes. A column of `caption` holds a text, or a list of
    them; captions of several columns are joined in their order. Raises ValueError naming the column or the row at
    fault, MissingImages where the data is not here.
    """

    def __init__(
        self,
        path: str,
        image: str = "image",
        label: str | None = "label",
        caption: str | list[str] | None = None,
        config: str | None = None,
        revision: str | None = None,
        train_split: str = "train",
        held_out_split: str | None = None,
        held_out: FractionBelowOne = 0.1,
        take: Count | None = None,
        streaming: bool = False,
        attributes: list[str] | None = None,
        files: str | None = None,
        split: Split = "train",
    ):
        self.path, self.image, self.label = path, image, label
        self.caption_columns = [] if caption is None else as_list(caption)
        self.attribute_names = list(attributes or ())
        columns = {"image": [image], "label": [label], "caption": self.caption_columns}
        columns["attributes"] = self.attribute_names
        collection = _Collection(path, config, revision, take, streaming, columns, files)
        train = collection.rows(train_split)
        values = read_labels(train, label, path) if label else []
        classes = Classes(train.features[label], values, path) if label else None
        self.class_names = classes.names if classes else []
        check_attributes(train, self.attribute_names, path)
        self.rows, self.roots = train, collection.roots
        if held_out_split and split == "held_out":
            self.rows = collection.rows(held_out_split)
            values = read_labels(self.rows, label, path) if label else []
        labels = classes.numbers(values) if classes else []
        self.places = list(range(len(self.rows)))
        if not held_out_split:
            aside = set_aside(map(str, self.places), held_out, labels)
            self.places = [row for row, a in enumerate(aside) if a == (split == "held_out")]
        self.labels = [labels[place] for place in self.places] if classes else []
        parts = (collection.identity, take, image, label, caption, train_split, held_out_split, held_out, split)
        parts += (tuple(self.attribute_names), tuple(self.class_names), collection.named_files(self.rows))
        self._fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> Record:
        row, name = self.rows[self.places[index]], f"row {self.places[index]} of {self.path}"
        stored = row[self.image]
        if not stored or (stored["bytes"] is None and not stored["path"]):
            raise BrokenImage(f"{name}: there is no image")
        name = f"{name} ({stored['path']})" if stored["path"] else name
        encoded = io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else _named_file(stored, self.roots, name)
        attributes = tuple(row[column] > 0 for column in self.attribute_names)
        return Record(decode(encoded, name), self.label_of(index), name, attributes)

    @property
    def has_captions(self) -> bool:
        return bool(self.caption_columns)

    def captions(self, index: int) -> tuple[str, ...]:
        place = self.places[index]
        row = self._texts[place] if self.caption_columns else {}
        return tidy((text for value in row.values() for text in as_list(value)), f"row {place} of {self.path}")

    @cached_property
    def _texts(self) -> "datasets.Dataset":
        return self.rows.select_columns(self.caption_columns)

    def caption_fingerprint(self) -> str:
        """As `fingerprint`, which sees the columns of captions too."""
        return self._fingerprint

    def fingerprint(self) -> str:
        """Of the content of the files, or of the revision, that are read, and of which rows and columns are taken."""
        return self._fingerprint

    def label_of(self, index: int) -> int | None:
        return self.labels[index] if self.class_names else None


class _Collection:
    """The splits of one collection, as map-style datasets of the wanted columns, with images left encoded."""

    def __init__(
        self,
        path: str,
        config: str | None,
        revision: str | None,
        take: Count | None,
        streaming: bool,
        columns_of_role: dict[str, list[str | None]],
        files: str | None,
    ):
        self.path, self.take, self.streaming = path, take, streaming
        self.image, self.stated = columns_of_role["image"][0], columns_of_role
        self.columns = [column for columns in columns_of_role.values() for column in columns if column]
        self.local, self.files = find_data_files(path), files
        folder = given_path(path)
        self.saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
        if self.saved:
            self.identity = self.local.content
        else:
            self.builder = self._builder(config, revision)
            remote = f"{self.builder.config_id} {self.builder.hash}"  # of the commit
            self.identity = self.local.content if self.local else remote
        self.roots = self._roots()

    def _roots(self) -> list[Path]:
        """The folders below which a path in the image column is read: that of the recipe, or those of its reader."""
        import datasets
        from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
        from huggingface_hub.constants import HF_HUB_CACHE

        if self.files is not None:
            return [given_path(self.files)]
        if self.saved or not isinstance(self.builder, FolderBasedBuilder):
            return []  # the data itself names the files
        unpacked = [datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE]
        return [*([self.local.folder] if self.local else []), *map(Path, unpacked)]

    def named_files(self, rows: "datasets.Dataset") -> str | None:
        """A hash of the files that an image column names below `data.source.files`; None where it holds the bytes."""
        paths = _paths_alone(rows, self.image)
        named = [_named_file({"path": path}, self.roots, f"row {row} of {self.path}") for row, path in paths]
        if not named or not self.files:
            return None
        root = self.roots[0].resolve()
        return hash_files(root, [str(file.relative_to(root)) for file in named])

    def rows(self, split: str) -> "datasets.Dataset":
        from datasets.exceptions import DatasetsError

        try:
            return self._rows(split)
        except (OSError, ValueError, KeyError, DatasetsError) as error:
            if str(error).startswith("data.source"):
                raise
            cause = error.__cause__ if isinstance(error.__cause__, ValueError) else error
            if str(cause).startswith("data.source"):
                raise ValueError(str(cause)) from error
            raise ValueError(f"data.source: split {split!r} of {self.path}: {_line(cause)}") from error

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

    def _builder(self, config: str | None, revision: str | None) -> "datasets.DatasetBuilder":
        import datasets

        try:
            if self.local is None and "/" in self.path and not may_be_hub_id(self.path):
                raise ValueError("there is no such file or folder")
            if self.local is None:
                return datasets.load_dataset_builder(self.path, config, revision=revision)
            # what is prepared of a file lies under its content: `datasets` looks at the time of change alone
            cache = Path(datasets.config.HF_DATASETS_CACHE) / "by_content" / self.local.content
            load = partial(datasets.load_dataset_builder, cache_dir=str(cache))
            if self.local.path.is_dir():
                return load(str(self.local.plain_folder(cache / "files")), config)
            reader = READERS.get(self.local.path.suffix.lower())
            if reader is None:
                raise ValueError(f"single files and patterns end in {', '.join(READERS)}; name the folder of others")
            return load(reader, data_files=self.local.pattern())
        except (OSError, ValueError) as error:
            kind = ValueError if self.local else MissingImages
            raise kind(f"data.source.path: {self.path!r} cannot be read: {_line(error)}") from error

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
        encoded = getattr(image, "dtype", "") in ("binary", "large_binary", "string", "large_string")
        struct = isinstance(image, dict) and "bytes" in image and set(image) <= {"bytes", "path"}
        if not isinstance(image, Image) and not encoded and not struct:
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
        roots = tuple(map(str, self.roots))  # a list would be divided among processes
        source = {"stream": stream, "image": self.image, "roots": roots, "path": self.path}
        source["remote"] = self.files is None and bool(self.roots)
        return Dataset.from_generator(_pull, features=stream.features, gen_kwargs=source, fingerprint=key)


def _pull(
    stream: "datasets.IterableDataset", image: str, roots: tuple[str, ...], path: str, remote: bool
) -> Iterator[dict[str, Any]]:
    """Rows with their images' bytes at hand; `remote` where addresses are named by a reader, and not by the data."""
    import fsspec

    for number, row in enumerate(stream):
        stored = row[image]
        if stored and stored["bytes"] is None and stored["path"]:
            own = [Path(root) for root in roots]
            address = remote and "://" in stored["path"]
            named = stored["path"] if address else _named_file(stored, own, f"row {number} of {path}")
            with fsspec.open(str(named), "rb") as file:
                row = row | {image: stored | {"bytes": file.read()}}
        yield row


def _paths_alone(rows: "datasets.Dataset", image: str) -> list[tuple[int, str]]:
    """Rows whose image is a path without bytes, and the path."""
    import pyarrow.compute as compute

    column = rows.select_columns([image]).with_format("arrow")
    if not len(rows):
        return []
    paths, first = [], 0
    for chunk in column[:].column(image).chunks:
        if chunk.field("bytes").null_count:
            alone = compute.and_(chunk.field("bytes").is_null(), chunk.field("path").is_valid())
            for place in compute.indices_nonzero(alone).to_pylist():
                paths.append((first + place, chunk.field("path")[place].as_py()))
        first += len(chunk)
    return paths


def _named_file(stored: dict[str, Any], roots: list[Path], name: str) -> Path:
    """The file that an image column names; ValueError where it may not be read."""
    if (file := file_inside(stored["path"], roots)) is None:
        raise ValueError(
            f"data.source.image: {name} names the file {stored['path']!r} in place of an image; such files are read"
            " below a folder that you state alone: set data.source.files=FOLDER"
        )
    return file


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
