"""What is listed below a folder: images by their content, every folder and file once, and nothing that hangs."""

import os

import pytest
from PIL import Image

from pipeline.files.listing import Lister, image_endings, readable_name


def draw(path, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (200, 10, 10)).save(path, kind)


def listed(folder):
    return Lister().list_images(folder).files


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "ICO", "QOI", "AVIF"])
def test_an_image_is_known_by_its_content(tmp_path, kind):
    for name in ("plain", "odd.dat", "x.PNG.1"):
        draw(tmp_path / name, kind)
    (tmp_path / "letter.dat").write_bytes(b"a text that is no image at all")
    (tmp_path / "notes.txt").write_text("a caption")
    assert listed(tmp_path) == ["odd.dat", "plain", "x.PNG.1"]


def test_every_ending_of_a_format_that_is_read_is_an_image_and_programs_are_none(tmp_path):
    assert {"jfif", "tga", "jpg", "mpo", "avif"} <= image_endings()
    assert not {"eps", "ps", "pdf", "h5", "mpg", "wmf"} & image_endings()
    (tmp_path / "drawing.dat").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert listed(tmp_path) == []


def test_links_are_followed_once(tmp_path, caplog):
    for name in ("own/a/1.png", "own/b/2.png", "far/c/3.png", "far/4.png"):
        draw(tmp_path / name)
    own = tmp_path / "own"
    (own / "a/self").symlink_to(".")
    (own / "b/up").symlink_to("..")
    (own / "b/again").symlink_to("2.png")
    (own / "b/other").symlink_to(tmp_path / "far/4.png")
    (own / "b/other too").symlink_to(tmp_path / "far/4.png")
    (own / "c").symlink_to(tmp_path / "far/c")
    (own / "0c").symlink_to("a")
    listing = Lister().list_images(own)
    assert listing.files == ["a/1.png", "b/2.png", "b/other", "c/3.png"]
    assert listing.without == ["0c"], "a link to a class that is there is a folder without images of its own"
    assert "5 links to what is listed already" in caplog.text


def test_folders_that_belong_together_share_no_image(tmp_path):
    draw(tmp_path / "train/a/1.png")
    draw(tmp_path / "val/a/2.png")
    (tmp_path / "val/a/1.png").symlink_to("../../train/a/1.png")
    (tmp_path / "val/b").symlink_to("../train/a")
    lister = Lister()
    assert lister.list_images(tmp_path / "train").files == ["a/1.png"]
    assert lister.list_images(tmp_path / "val").files == ["a/2.png"]


def test_what_cannot_be_opened_is_named(tmp_path):
    draw(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "3.png").symlink_to("/nowhere/at/all")
    (tmp_path / "4").symlink_to("4")
    listing = Lister().list_images(tmp_path)
    assert listing.files == ["1.png", "2.png", "3.png", "4"]
    assert listing.broken == {"2.png": "no regular file", "3.png": "a link to nothing", "4": "a link to nothing"}


def test_what_systems_add_is_passed_over(tmp_path):
    draw(tmp_path / "a/1.png")
    for name in ("@eaDir/1.png/thumb.jpg", "__MACOSX/a/1.png", ".git/x.png", "a/._1.png", "a/@eaDir/x.png"):
        draw(tmp_path / name, "PNG")
    listing = Lister().list_images(tmp_path)
    assert (listing.files, listing.without) == (["a/1.png"], [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    draw(tmp_path / "a/1.png")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(ValueError, match="/a' cannot be read"):
            listed(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o755)


def test_names_of_any_bytes_become_text():
    assert readable_name(os.fsdecode(b"caf\xe9/1.png")) == readable_name("café/1.png") == "café/1.png"
    readable_name(os.fsdecode(b"\xff\xfe")).encode()
