"""Columns as other programs write them: labels of any type become classes that have images, and paths stay inside."""

import io
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline.components import build
from pipeline.datasets.base import MissingImages

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def encoded(number):
    file = io.BytesIO()
    Image.new("L", (4, 4), number).save(file, "BMP")  # of one size, whatever is in it
    return file.getvalue()


def table(path, rows=6, **columns):
    columns = {"image": [encoded(number) for number in range(rows)]} | columns
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def read(path, split="train", **more):
    return build("datasets", {"kind": "hub", "path": path, "held_out": 0} | more, split=split)


@pytest.mark.parametrize(
    "values, names",
    [
        ([7, 1, 2] * 2, ["1", "2", "7"]),
        ([-3, 10] * 3, ["-3", "10"]),
        ([True, False] * 3, ["false", "true"]),
        (["b", "ä", "010"] * 2, ["010", "b", "ä"]),
    ],
)
def test_a_class_is_a_value_that_an_image_has(tmp_path, values, names):
    source = read(table(tmp_path / "x.parquet", label=values))
    assert source.class_names == names and source.class_counts() == [6 // len(names)] * len(names)
    assert [source.read(row).label for row in range(6)] == [sorted(set(values)).index(value) for value in values]


def test_named_classes_without_images_are_left_out_and_told_of(tmp_path, caplog):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ape", "bee", "cow"])})
    images = [{"bytes": encoded(number), "path": None} for number in range(4)]
    rows = datasets.Dataset.from_dict({"image": images, "label": [2, 0, 2, 0]}, features)
    rows.save_to_disk(tmp_path / "saved")
    with caplog.at_level(logging.WARNING):
        source = read(str(tmp_path / "saved"))
    assert source.class_names == ["ape", "cow"] and [source.read(row).label for row in range(4)] == [1, 0, 1, 0]
    assert "1 classes have no image and are left out: bee" in caplog.text
    images = datasets.Dataset.from_dict({"image": images, "label": [2, 0, -1, 0]}, features)
    images.save_to_disk(tmp_path / "unknown")
    with pytest.raises(ValueError, match=r"row 2 of .* has the label -1, none of the 3 classes"):
        read(str(tmp_path / "unknown"))


@pytest.mark.parametrize(
    "values, message",
    [
        ([[1], [2]] * 3, r"column 'label' of .* holds List\(.*set label=null"),
        ([0.5, 1.0] * 3, "column 'label' of .* holds Value"),
        (["a", "b", None] * 2, "row 2 of .* has no label"),
        (["", "b"] * 3, "row 0 of .* has no label"),
        ([None] * 6, "row 0 of .* has no label"),
    ],
)
def test_other_labels_are_refused_by_name_before_an_image_is_read(tmp_path, values, message):
    path = table(tmp_path / "x.parquet", label=values)
    with pytest.raises(ValueError, match=message):
        read(path)
    assert read(path, label=None).class_names == []


def test_an_attribute_that_a_row_lacks_is_refused_before_an_image_is_read(tmp_path):
    path = table(tmp_path / "x.parquet", label=[0, 1] * 3, Smiling=[True, None] * 3)
    with pytest.raises(ValueError, match="row 1 of .*: Smiling is None; an attribute is true or false"):
        read(path, attributes=["Smiling"])


def test_a_held_out_label_that_training_lacks_is_refused_by_its_row(tmp_path):
    table(tmp_path / "data/train.parquet", label=["a", "b"] * 3)
    table(tmp_path / "data/test.parquet", rows=2, label=["a", "c"])
    with pytest.raises(ValueError, match="row 1 of the held-out split of .* has the label 'c'"):
        read(str(tmp_path / "data"), "held_out", held_out_split="test")


def test_every_class_keeps_an_image_for_training(tmp_path):
    path = table(tmp_path / "x.parquet", rows=12, label=[0] * 10 + [1, 2])
    assert all(read(path, held_out=0.9).class_counts())
    assert len(read(path, "held_out", held_out=0.9)) > 5


@pytest.mark.parametrize("path", [None, "7.bmp"])
def test_images_are_structs_as_others_write_them(tmp_path, path):
    images = [{"bytes": encoded(number), "path": path} for number in range(6)]
    source = read(table(tmp_path / "x.parquet", image=images, label=[0, 1] * 3))
    assert [source.read(row).image.getpixel((0, 0)) for row in range(6)] == list(range(6))


@pytest.mark.parametrize("name", ["[2024] set/train.parquet", "set/TRAIN.PARQUET", "a*b?/train.parquet"])
def test_names_are_taken_as_they_are(tmp_path, name):
    path = table(tmp_path / name, label=[0, 1] * 3)
    folder, ending = os.path.dirname(path), os.path.splitext(path)[1]
    for given in (path, folder, f"{folder}/*{ending}"):
        assert len(read(given)) == 6, given


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_of_paths_reads_below_a_stated_folder_alone(tmp_path, streaming):
    for name in ("own/1.bmp", "private.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(9))
    inside = table(tmp_path / "data/in.parquet", rows=2, image=["1.bmp"] * 2, label=[0, 1])
    for number, outside in enumerate((str(tmp_path / "private.bmp"), "../private.bmp")):
        path = table(tmp_path / f"data/{number}.parquet", rows=2, image=["1.bmp", outside], label=[0, 1])
        for files in ({}, {"files": str(tmp_path / "own")}):
            with pytest.raises(ValueError, match="names the file .* set data.source.files=FOLDER"):
                read(path, streaming=streaming, **files)
    source = read(inside, files=str(tmp_path / "own"), streaming=streaming)
    assert source.read(0).image.getpixel((0, 0)) == 9


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["folder", "[a] folder"])
def test_a_folder_of_images_names_its_own(tmp_path, form, streaming):
    place = tmp_path / form
    for number, name in enumerate(("ape/1.bmp", "bee/2.bmp", "bee/3.bmp")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(encoded(number))
    source = read(str(tmp_path / form), streaming=streaming)
    assert source.class_names == ["ape", "bee"] and source.class_counts() == [1, 2]
    assert sorted(source.read(row).image.getpixel((0, 0)) for row in range(3)) == [0, 1, 2]


def test_the_named_files_count_for_the_fingerprint(tmp_path):
    (tmp_path / "1.bmp").write_bytes(encoded(9))
    path = table(tmp_path / "x.parquet", rows=2, image=["1.bmp"] * 2, label=[0, 1])
    before = read(path, files=str(tmp_path)).fingerprint()
    (tmp_path / "1.bmp").write_bytes(encoded(10))
    assert read(path, files=str(tmp_path)).fingerprint() != before


def test_a_file_that_changes_at_the_same_size_and_time_is_read_anew(tmp_path):
    """The cache of `datasets` looks at the time of change alone."""
    folder = tmp_path / "data"
    path = folder / "train.parquet"
    folder.mkdir()
    columns = {"image": pyarrow.array([encoded(1)] * 3), "label": pyarrow.array([0, 1, 2])}
    parquet.write_table(pyarrow.table(columns), path, compression="none", use_dictionary=False, write_statistics=False)
    before, state = read(str(folder)), path.stat()
    path.write_bytes(path.read_bytes().replace(encoded(1), encoded(2)))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = read(str(folder))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert after.fingerprint() != before.fingerprint() and np.asarray(after.read(0).image).max() == 2
    shutil.move(folder, tmp_path / "moved")
    assert read(str(tmp_path / "moved")).fingerprint() == after.fingerprint()


def test_data_that_is_not_here_is_told_from_data_that_is_wrong(tmp_path):
    with pytest.raises(MissingImages, match="cannot be read"):
        read(str(tmp_path / "nowhere.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match="broken.parquet") as caught:
        read(str(tmp_path / "broken.parquet"))
    assert not isinstance(caught.value, MissingImages)
