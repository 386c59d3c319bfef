"""Every kind of source gives the same records twice, keeps its held-out share, and says what is wrong in one line."""

import io
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.components import build
from pipeline.datasets.base import BrokenImage, set_aside
from pipeline.datasets.digits import Digits
from pipeline.datasets.image_folder import ImageFolder
from pipeline.images.reading import Images
from pipeline.recipes.data import Data


def encoded(grey: int, size: tuple[int, int] = (8, 8), kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("L", size, grey).save(file, kind)
    return file.getvalue()


def folder(root, names):
    for grey, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(grey))
    return str(root)


def both(**node):
    return tuple(build("datasets", node, split=split) for split in ("train", "held_out"))


def test_digits_hold_out_the_same_fifth_of_every_class_for_ever():
    train, held_out = Digits("train"), Digits("held_out")
    assert (len(train), len(held_out)) == (1438, 359)
    assert not set(train.rows) & set(held_out.rows)
    assert held_out.rows[:8].tolist() == [0, 1, 2, 13, 14, 30, 33, 51]
    shares = np.bincount(held_out.labels) / (np.bincount(held_out.labels) + np.bincount(train.labels))
    assert np.abs(shares - 0.2).max() < 0.005
    assert train.class_names == list("0123456789")
    assert train.fingerprint() == Digits("train").fingerprint() != held_out.fingerprint()


def test_digits_are_what_was_scanned():
    from sklearn.datasets import load_digits

    train, scans = Digits("train"), load_digits()
    for index in (0, 700, 1437):
        record, row = train.read(index), train.rows[index]
        assert np.array_equal(np.asarray(record.image), np.rint(scans.images[row] * 255 / 16))
        assert record.label == scans.target[row]


def test_class_folders_are_labels_in_sorted_order(tmp_path):
    path = folder(tmp_path, ["b/1.png", "b/deep/2.PNG", "a/3.jpeg", "a/.hidden.png", ".git/x.png", "a/notes.txt"])
    train = ImageFolder(path, held_out=0)
    assert train.class_names == ["a", "b"]
    names = [os.path.relpath(train.read(i).name, path) for i in range(len(train))]
    assert names == ["a/3.jpeg", "b/1.png", "b/deep/2.PNG"]
    assert [train.read(i).label for i in range(3)] == [0, 1, 1]
    assert len(ImageFolder(path, held_out=0, split="held_out")) == 0


def test_images_alone_have_no_classes(tmp_path):
    train, held_out = both(kind="image_folder", path=folder(tmp_path, [f"{i}.png" for i in range(30)]))
    assert train.class_names == [] and train.read(0).label is None
    assert len(train) + len(held_out) == 30 and len(held_out) > 0


@pytest.mark.parametrize("other", ["val", "test", "held_out"])
def test_a_stated_split_is_kept(tmp_path, other):
    path = folder(tmp_path, ["train/b/1.png", "train/a/2.png", f"{other}/b/3.png"])
    train, held_out = both(kind="image_folder", path=path)
    assert (len(train), len(held_out)) == (2, 1)
    assert held_out.class_names == train.class_names == ["a", "b"] and held_out.read(0).label == 1


def test_train_alone_is_a_split_and_beside_other_folders_a_class(tmp_path):
    assert ImageFolder(folder(tmp_path / "one", ["train/a/1.png", "train/b/2.png"])).class_names == ["a", "b"]
    assert ImageFolder(folder(tmp_path / "two", ["train/1.png", "ship/2.png"])).class_names == ["ship", "train"]


def test_an_image_keeps_its_side_when_others_join(tmp_path):
    names = [f"{i}.png" for i in range(60)]
    before = {f.name for f in ImageFolder(folder(tmp_path, names), 0.3, "held_out").files}
    after = {f.name for f in ImageFolder(folder(tmp_path, [f"new{i}.png" for i in range(60)]), 0.3, "held_out").files}
    assert 8 < len(before) < 28
    assert before == {name for name in after if not name.startswith("new")}


def test_both_sides_get_something():
    assert sorted(set_aside(["x", "y"], 0.01)) == sorted(set_aside(["x", "y"], 0.99)) == [False, True]
    assert set_aside(["x", "y"], 0) == [False, False]
    with pytest.raises(ValueError, match=r"held_out is 1"):
        set_aside(["x"], 1)


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    path = folder(tmp_path, ["a/1.png", "a/2.png", "b/3.png"])
    before = ImageFolder(path, 0).fingerprint()
    assert ImageFolder(path, 0).fingerprint() == before
    (tmp_path / "a/1.png").write_bytes(encoded(200, (9, 9)))
    assert ImageFolder(path, 0).fingerprint() != before


@pytest.mark.parametrize(
    "names, message",
    [
        (None, "data.source.path: there is no folder"),
        ([], "no images below"),
        (["a/1.png", "2.png"], "lies beside the class folder 'a'"),
        (["train/a/1.png", "val/c/2.png"], "is not in a class folder that train has"),
    ],
)
def test_unusable_folders_are_refused_in_one_line(tmp_path, names, message):
    path = str(tmp_path / "nowhere") if names is None else folder(tmp_path, names)
    with pytest.raises(ValueError, match=message) as caught:
        both(kind="image_folder", path=path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_damaged_files_are_named(tmp_path):
    whole = encoded(7, (64, 64), "jpeg")
    for name, content in {"cut.jpg": whole[: len(whole) // 2], "text.png": b"hello", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
    source = ImageFolder(str(tmp_path), held_out=0)
    for index in range(3):
        with pytest.raises(BrokenImage, match=source.files[index].name):
            source.read(index)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The same twelve images in every local form that the hub source reads, one of them broken."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("hub")
    keep = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = root / "cache"
    images = [{"bytes": encoded(10 * i) if i != 5 else b"broken", "path": None} for i in range(12)]
    columns = {"image": images, "label": [i % 2 for i in range(12)], "word": [["dog", "cat"][i % 2] for i in range(12)]}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ape"])}
    rows = datasets.Dataset.from_dict(columns, datasets.Features(features | {"word": datasets.Value("string")}))
    rows.to_parquet(root / "parquet/train-0.parquet")
    rows.select(range(3)).to_parquet(root / "parquet/test-0.parquet")
    datasets.DatasetDict({"train": rows, "test": rows.select(range(3))}).save_to_disk(root / "saved")
    (root / "tars").mkdir()
    for shard in range(2):
        with tarfile.open(root / f"tars/{shard}.tar", "w") as tar:
            for i in range(6 * shard, 6 * shard + 6):
                for suffix, content in {
                    "png": images[i]["bytes"],
                    "cls": b"%d" % (i % 2),
                    "txt": b"no. %d" % i,
                }.items():
                    member = tarfile.TarInfo(f"{i:03d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    yield root
    datasets.config.HF_DATASETS_CACHE = keep


TAR = {"image": "png", "label": "cls", "caption": "txt"}
FORMS = {
    "parquet": {},
    "parquet/train-0.parquet": {},
    "saved": {},
    "saved/train/*.arrow": {},
    "tars/*.tar": TAR,
}


@pytest.mark.parametrize("streaming", [False, True], ids=["mapped", "streamed"])
@pytest.mark.parametrize("form", FORMS)
def test_every_local_form_gives_the_same_records(hub, form, streaming):
    node = {"kind": "hub", "path": str(hub / form), "streaming": streaming, "held_out": 0.3} | FORMS[form]
    train, held_out = both(**node)
    assert train.class_names == (["0", "1"] if form.startswith("tars") else ["zebra", "ape"])
    assert sorted(train.places + held_out.places) == list(range(12)) and len(held_out) > 0
    for source in (train, held_out):
        for index, place in enumerate(source.places):
            if place == 5:
                with pytest.raises(BrokenImage, match="row 5 of"):
                    source.read(index)
                continue
            record = source.read(index)
            assert record.image.getpixel((0, 0)) == 10 * place and record.label == place % 2
            assert source.captions(index) == ((f"no. {place}",) if form.startswith("tars") else ())


def test_a_stream_is_pulled_through_once(hub, monkeypatch):
    node = {"kind": "hub", "path": str(hub / "parquet"), "streaming": True, "take": 4, "held_out": 0}
    first = build("datasets", node, split="train")
    assert len(first) == 4

    def pulled(*_):
        raise AssertionError("pulled again")

    monkeypatch.setattr("pipeline.datasets.hub._pull", pulled)
    again = build("datasets", node, split="train")
    assert again.read(3).image.tobytes() == first.read(3).image.tobytes()
    assert again.fingerprint() == first.fingerprint()


def test_stated_splits_words_as_labels_and_no_labels(hub):
    train, held_out = both(kind="hub", path=str(hub / "parquet"), label="word", held_out_split="test")
    assert (len(train), len(held_out)) == (12, 3)
    assert train.class_names == held_out.class_names == ["cat", "dog"]
    assert [held_out.read(i).label for i in range(3)] == [1, 0, 1]
    assert both(kind="hub", path=str(hub / "parquet"), label=None)[0].read(0).label is None


def test_attributes_are_columns_of_yes_and_no(tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = {
        "image": [{"bytes": encoded(10 * i), "path": None} for i in range(4)],
        "Smiling": [True, False, True, False],
        "Young": [1, -1, -1, 1],
        "named": ["a", "b", "c", "d"],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "Smiling": datasets.Value("bool"), "Young": datasets.Value("int8")}
        | {"named": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path / "faces")
    node = {"kind": "hub", "path": str(tmp_path / "faces"), "label": None, "held_out": 0}
    plain = build("datasets", node, split="train")
    faces = build("datasets", node | {"attributes": ["Young", "Smiling"]}, split="train")
    assert plain.attribute_names == [] and plain.read(0).attributes == ()
    assert faces.attribute_names == ["Young", "Smiling"] and faces.fingerprint() != plain.fingerprint()
    asked = [faces.read(i).attributes for i in range(4)]
    assert asked == [(True, True), (False, False), (False, True), (True, False)]
    images = Images(Data(source=node | {"attributes": ["Young", "Smiling"]}, size=8), "train")
    assert images.attribute_names == ["Young", "Smiling"]
    assert images.plain(torch.tensor([2, 0])).attributes.tolist() == [[False, True], [True, True]]
    assert images.plain(torch.tensor([2]), flip=True).attributes is None, (
        "what is left in an image is right in a mirror"
    )
    with pytest.raises(ValueError, match="attributes: .* no column 'Old'; set attributes .or null. to one of: image"):
        build("datasets", node | {"attributes": ["Old"]}, split="train")
    with pytest.raises(ValueError, match="row 0 of .*: named is 'a'; an attribute is true or false"):
        build("datasets", node | {"attributes": ["named"]}, split="train")


def test_shapes_are_where_and_what_they_are_said_to_be():
    train, held_out = both(kind="shapes", images=200, held_out=50, size=32)
    assert (len(train), len(held_out)) == (200, 50) and train.fingerprint() != held_out.fingerprint()
    assert (
        train.fingerprint()
        == build("datasets", {"kind": "shapes", "images": 200, "size": 32}, split="train").fingerprint()
    )
    has, labels = [], []
    for i in range(200):
        record = train.read(i)
        pixels = np.asarray(record.image).astype(int)
        assert pixels.shape == (32, 32, 3)
        names = dict(zip(train.attribute_names, record.attributes))
        ground = pixels[0, 0]
        shape = np.abs(pixels - ground).sum(axis=2) > 60
        down, across = np.argwhere(shape).mean(axis=0) / 31
        assert (across < 0.5) == names["left"] and (down < 0.5) == names["top"]
        assert (ground.mean() < 128) == names["dark_ground"]
        colour = pixels[shape].mean(axis=0)
        assert not names["red"] or colour.argmax() == 0
        assert not names["blue"] or colour.argmax() == 2
        assert sum(names[one] for one in ("red", "green", "blue")) <= 1
        has.append(record.attributes), labels.append(record.label)
    again = train.read(7)
    assert (
        again.image.tobytes()
        == build("datasets", {"kind": "shapes", "size": 32}, split="train").read(7).image.tobytes()
    )
    together = np.corrcoef(np.column_stack([np.array(has), labels]).T)
    apart = together[3:, 3:] - np.eye(5)
    assert np.abs(apart).max() < 0.25 and np.bincount(labels).min() > 30, "nothing tells of anything else"
    with pytest.raises(ValueError, match="images is 0; give 1 or more"):
        build("datasets", {"kind": "shapes", "images": 0}, split="train")


def test_other_files_have_another_fingerprint(hub, tmp_path):
    copy = tmp_path / "rows.parquet"
    copy.write_bytes((hub / "parquet/train-0.parquet").read_bytes())
    before = build("datasets", {"kind": "hub", "path": str(copy)}, split="train").fingerprint()
    copy.write_bytes((hub / "parquet/test-0.parquet").read_bytes())
    assert build("datasets", {"kind": "hub", "path": str(copy)}, split="train").fingerprint() != before


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"image": "img"}, "data.source.image: .* has no column 'img'; set image to one of: image, label, word"),
        ({"label": "class"}, r"data.source.label: .* set label \(or null\) to one of: image, label, word"),
        ({"image": "label"}, "data.source.image: column 'label' .* holds no images"),
        ({"train_split": "training"}, "split 'training' of .*train.*test"),
        ({"path": "/nowhere/at/all"}, "data.source.path: '/nowhere/at/all' cannot be read"),
    ],
)
def test_what_is_missing_is_said_in_one_line(hub, change, message, streaming):
    with pytest.raises(ValueError, match=message) as caught:
        build("datasets", {"kind": "hub", "path": str(hub / "parquet"), "streaming": streaming} | change, split="train")
    assert "\n" not in str(caught.value)


def test_captions_are_columns_of_texts_or_of_lists_of_texts(tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = {
        "image": [{"bytes": encoded(10 * i), "path": None} for i in range(3)],
        "texts": [[" one ", "uno"], [], None],
        "title": ["first", None, ""],
        "number": [1, 2, 3],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "texts": datasets.List(datasets.Value("string"))}
        | {"title": datasets.Value("string"), "number": datasets.Value("int64")}
    )
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path / "rows")
    node = {"kind": "hub", "path": str(tmp_path / "rows"), "label": None, "held_out": 0}
    plain, both_columns = build("datasets", node), build("datasets", node | {"caption": ["title", "texts"]})
    assert not plain.has_captions and plain.captions(0) == ()
    assert both_columns.has_captions
    assert [both_columns.captions(i) for i in range(3)] == [("first", "one", "uno"), (), ()]
    titles = build("datasets", node | {"caption": "title"})
    assert titles.captions(0) == ("first",) and titles.caption_fingerprint() != both_columns.caption_fingerprint()
    with pytest.raises(ValueError, match="caption: row 1 of .* holds 2, which is no text"):
        build("datasets", node | {"caption": "number"}).captions(1)
    with pytest.raises(ValueError, match="caption: .* has no column 'words'"):
        build("datasets", node | {"caption": ["title", "words"]})


def test_shapes_are_told_in_words():
    train = build("datasets", {"kind": "shapes", "images": 30})
    assert train.has_captions and not build("datasets", {"kind": "digits"}).has_captions
    for index in range(30):
        record, (long, short) = train.read(index), train.captions(index)
        words = long.replace(" on a", "").split()
        has = dict(zip(train.attribute_names, record.attributes))
        assert long.startswith(f"{short} at the ") and train.class_names[record.label] in short
        assert all(
            (word in words) == has[word]
            for word in (
                "red",
                "green",
                "blue",
                "left",
                "top",
                "large",
            )
        )
        assert ("dark" in words) == has["dark_ground"]
