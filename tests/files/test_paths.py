"""A folder with a slip in its name is a folder that is not there, and published text does not tell where things lay."""

import getpass

import pytest

from pipeline.files.paths import may_be_hub_id, without_paths
from pipeline.nn.stock_autoencoder import read_config
from pipeline.saved_folders import fetch
from pipeline.vision.weights import locate_model


def test_what_may_be_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("owner/name", "facebook/dinov2-base", "a.b/c_d-1"):
        assert may_be_hub_id(name)
    for name in (
        "runs/typo",
        "pictures/typo",
        "pictures",
        "./x/y",
        "../x",
        "/a/b",
        "~/x",
        "~nobody/x",
        "a/b/c",
        "",
        "a",
    ):
        assert not may_be_hub_id(name)


@pytest.mark.parametrize("name", ["runs/typo", "~nobody", "~nobody/x", "typo", "n" * 300, "a\0b/c"], ids=ascii)
def test_a_slip_in_a_folder_never_asks_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for ask in (lambda: fetch(name, {}), lambda: read_config(name, None), lambda: locate_model(name, {}, "teacher")):
        with pytest.raises(ValueError, match="neither a folder|no folder here") as error:
            ask()
        assert "\n" not in str(error.value)


def test_published_text_has_no_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jane" / "imgs").mkdir(parents=True)
    values = {
        "path": str(tmp_path / "jane" / "imgs"),
        "relative": "jane/imgs",
        "up": "../secret/imgs.npz",
        "home": "~/secret/weights.pt",
        "windows": "C:\\Users\\secret\\imgs",
        "command": "run.py all /home/secret/r.yaml data.source.path='/home/secret/my imgs' out=/secret/x",
        "nested": [{"deep": ("200 of /home/secret/imgs, train",)}],
        "hub": "owner/name",
        "run": "runs/digits/generator",
        "unit": "bits/dim",
        "url": "https://example.org/a/b",
        "ratio": "3 / 4",
        "id2label": {0: "/m/01g317", 1: "n/a"},
        "count": 3,
    }
    shown = without_paths(values)
    assert "secret" not in repr(shown) and "jane" not in repr(shown) and getpass.getuser() + "/" not in repr(shown)
    kept = ("hub", "run", "unit", "url", "ratio", "id2label", "count")
    assert {name: shown[name] for name in kept} == {name: values[name] for name in kept}
    assert (shown["path"], shown["relative"], shown["home"]) == ("imgs", "imgs", "weights.pt")
