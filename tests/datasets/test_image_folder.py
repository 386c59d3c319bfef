"""Folders as people have them: every image is read, every class is kept, and what is wrong is named at once."""

import io
import os

import pytest
import torch
from PIL import Image

from pipeline.components import build
from pipeline.datasets.image_folder import ImageFolder
from pipeline.images.reading import Images
from pipeline.recipes.data import Data
from pipeline.recipes.files import parse_settings


def draw(root, *names, kind="PNG"):
    for grey, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * grey).save(root / name, kind)
    return str(root)


def both(path, **more):
    return [build("datasets", {"kind": "image_folder", "path": path} | more, split=s) for s in ("train", "held_out")]


@pytest.mark.parametrize(
    "names",
    [("Train", "Val"), ("TRAIN", "TEST"), ("training", "validation"), ("train", "dev"), ("Training", "eval")],
)
def test_split_folders_are_known_in_any_case(tmp_path, names):
    path = draw(tmp_path, f"{names[0]}/b/1.png", f"{names[0]}/a/2.png", f"{names[1]}/b/3.png", "@eaDir/x/4.png")
    train, held_out = both(path)
    assert train.class_names == held_out.class_names == ["a", "b"]
    assert (train.class_counts(), held_out.class_counts()) == ([1, 1], [0, 1])


def test_two_folders_for_one_split_are_refused(tmp_path):
    draw(tmp_path, "train/a/1.png", "Training/a/2.png", "val/a/3.png")
    with pytest.raises(ValueError, match="Training' and .*train' are both there for one split; leave one of them"):
        both(str(tmp_path))


def test_of_several_held_out_folders_the_first_known_is_taken(tmp_path):
    train, held_out = both(draw(tmp_path, "train/1.png", "test/2.png", "valid/3.png"))
    assert [str(name) for name in held_out.files] == ["3.png"]


def test_a_class_is_kept_whatever_its_files_are_called(tmp_path):
    draw(tmp_path, "a/1.jfif", "b/2", "c/deep/3.dat", kind="JPEG")
    source = ImageFolder(str(tmp_path), held_out=0)
    assert source.class_names == ["a", "b", "c"] and source.class_counts() == [1, 1, 1]
    assert [source.read(i).label for i in range(3)] == [0, 1, 2]


def test_a_class_without_images_is_refused_and_hidden_ones_are_not(tmp_path):
    draw(tmp_path, "a/1.png", "b/2.png")
    for name in ("empty", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes/readme.txt").write_text("words")
    with pytest.raises(ValueError, match="there is no image in '.*/empty', '.*/notes', which would be no class"):
        ImageFolder(str(tmp_path))
    for name in ("empty", "notes"):
        (tmp_path / name).rename(tmp_path / f".{name}")
    assert ImageFolder(str(tmp_path)).class_names == ["a", "b"]


def test_a_held_out_split_without_images_or_of_training_images_alone_is_refused(tmp_path):
    draw(tmp_path, "train/a/1.png", "train/b/2.png")
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="no images below '.*/val' that train has not too"):
        both(str(tmp_path))
    (tmp_path / "val").rmdir()
    (tmp_path / "val").symlink_to("train")
    with pytest.raises(ValueError, match="no images below '.*/val' that train has not too"):
        both(str(tmp_path))


def test_every_class_keeps_an_image_for_training(tmp_path):
    train, held_out = both(draw(tmp_path, *(f"{number:02d}/1.png" for number in range(30))), held_out=0.9)
    assert train.class_counts() == [1] * 30 and len(held_out) == 0
    train, held_out = both(draw(tmp_path, *(f"{number:02d}/2.png" for number in range(30))), held_out=0.9)
    assert train.class_counts() == [1] * 30 and len(held_out) == 30


def test_what_cannot_be_opened_counts_as_broken_before_anything_is_read(tmp_path):
    draw(tmp_path, *(f"a/{number}.png" for number in range(4)))
    os.mkfifo(tmp_path / "a/pipe.png")
    (tmp_path / "a/far.png").symlink_to("/nowhere/at/all.png")
    source = {"kind": "image_folder", "path": str(tmp_path), "held_out": 0.0}
    with pytest.raises(ValueError, match=r"1 broken, data.tolerate is 0: .*/a/far.png: a link to nothing"):
        Images(Data(source, size=8), "train")
    with pytest.raises(ValueError, match=r"2 broken, data.tolerate is 1: .*; .*/a/pipe.png: no regular file"):
        Images(Data(source, size=8, tolerate=1), "train")
    images = Images(Data(source, size=8, tolerate=2), "train")
    assert len(images) == 6 and images.plain(torch.arange(6)).images.shape == (6, 3, 8, 8)
    assert len(images.broken) == 2 and images.fingerprint()


def test_a_class_of_which_no_image_can_be_read_is_refused_however_many_are_tolerated(tmp_path):
    draw(tmp_path, *(f"a/{number}.png" for number in range(4)), "b/1.png", "b/2.png")
    source = Data({"kind": "image_folder", "path": str(tmp_path), "held_out": 0.0}, size=8, tolerate=9)
    (tmp_path / "b/1.png").write_bytes(b"nothing")
    assert len(Images(source, "train").plain(torch.arange(6))) == 6
    (tmp_path / "b/2.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no image of the class 'b' can be read: .*/b/2.png"):
        Images(source, "train").plain(torch.arange(6))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/1.png").symlink_to("/nowhere")
    with pytest.raises(ValueError, match="no image of the class 'c' can be read: .*/c/1.png: a link to nothing"):
        Images(source, "train")


def test_names_that_are_no_utf8_are_text_for_all_that_is_written(tmp_path):
    for folder in (b"caf\xe9", "tür".encode(), b"\xff"):
        place = os.path.join(os.fsencode(tmp_path), folder)
        os.mkdir(place)
        file = io.BytesIO()
        Image.new("L", (8, 8)).save(file, "PNG")
        with open(os.path.join(place, b"\xe9.png"), "wb") as image:
            image.write(file.getvalue())
    source = ImageFolder(str(tmp_path), held_out=0)
    assert source.class_names == ["café", "tür", "ÿ"] and source.fingerprint()
    for index in range(3):
        source.read(index).name.encode()
    os.mkdir(os.path.join(os.fsencode(tmp_path), "café".encode()))
    draw(tmp_path, "café/1.png")
    with pytest.raises(ValueError, match="two class folders of .* have the same name as text"):
        ImageFolder(str(tmp_path), held_out=0)
    with pytest.raises(ValueError, match=r"data.source.path: the bytes of caf\\xe9 are no UTF-8") as caught:
        parse_settings(["data.source.path=" + os.fsdecode(b"caf\xe9")])
    str(caught.value).encode()


def test_captions_lie_beside_pictures_or_in_metadata(tmp_path):
    path = draw(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png")
    (tmp_path / "train/a/1.txt").write_text("one\nuno")
    (tmp_path / "val/metadata.csv").write_text("file_name,caption,words\na/3.png,three,drei\n")
    train, held_out = both(path)
    assert train.has_captions and held_out.has_captions
    assert [train.captions(i) for i in range(2)] == [("one", "uno"), ()]
    assert [held_out.captions(i) for i in range(2)] == [("three",), ()]
    assert both(path, caption=["words", "caption"])[1].captions(0) == ("drei", "three")
    pictures, captions = train.fingerprint(), train.caption_fingerprint()
    (tmp_path / "train/a/1.txt").write_text("another")
    train = both(path)[0]
    assert train.fingerprint() == pictures and train.caption_fingerprint() != captions
    assert not both(draw(tmp_path / "plain", "1.png", "2.png"))[0].has_captions
