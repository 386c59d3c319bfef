"""What has its name is complete: files and folders are written whole or not at all, and others may read them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.files import writing

ROOT = Path(__file__).parents[1]


def test_every_kind_of_file_comes_back_and_others_may_read_it(tmp_path):
    values = {"arr_0": np.arange(6).reshape(2, 3)}
    tensors = {"weight": torch.arange(4.0)}
    writing.write_text(tmp_path / "new" / "text", "größer\n")
    writing.write_json(tmp_path / "json", {"b": 1, "a": None}, sort_keys=True)
    writing.write_arrays(tmp_path / "arrays.npz", values)
    writing.write_tensors(tmp_path / "tensors.safetensors", tensors, {"format": "pt"})
    assert (tmp_path / "new" / "text").read_text(encoding="utf-8") == "größer\n"
    assert (tmp_path / "json").read_text() == '{\n  "a": null,\n  "b": 1\n}\n'
    assert np.array_equal(np.load(tmp_path / "arrays.npz")["arr_0"], values["arr_0"])
    assert torch.equal(load_file(tmp_path / "tensors.safetensors")["weight"], tensors["weight"])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4, "no drafts are left"
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~writing._mask()}


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path):
    writing.write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        writing.write_json(tmp_path / "a.json", float("nan"), allow_nan=False)
    with pytest.raises(RuntimeError), writing.new_file(tmp_path / "a.json") as draft:
        draft.write_text("half")
        raise RuntimeError
    assert json.loads((tmp_path / "a.json").read_text()) == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_folder_takes_the_place_of_the_old_one_when_it_is_complete(tmp_path):
    with writing.new_folder(tmp_path / "model") as draft:
        (draft / "old").mkdir()
        (draft / "weights").touch(0o600)
    with pytest.raises(RuntimeError), writing.new_folder(tmp_path / "model") as draft:
        (draft / "half").touch()
        raise RuntimeError
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["old", "weights"]
    assert (tmp_path / "model" / "weights").stat().st_mode & 0o777 == 0o666 & ~writing._mask()
    writing.copy_folder(tmp_path / "model" / "old", tmp_path / "model2")
    with writing.new_folder(tmp_path / "model") as draft:
        (draft / "new").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model2"], "what an error left is gone, too"


def test_a_writer_that_is_killed_leaves_no_half_file(tmp_path):
    code = """
import sys, time
from pathlib import Path
from pipeline.files.writing import new_file
with new_file(Path(sys.argv[1])) as draft:
    draft.write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert writer.stdout.readline() == "half\n"
    writer.kill()
    writer.wait()
    assert not (tmp_path / "file").exists()
    writing.write_text(tmp_path / "file", "whole")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def test_the_bytes_of_a_tensor_file_repeat_and_hold_its_metadata(tmp_path):
    metadata = {name: name * 3 for name in ("sha256", "manifest", "größe", 'quote"')}
    contents = set()
    for _ in range(8):  # safetensors alone writes the names in another order each time
        writing.write_tensors(tmp_path / "a.safetensors", {"w": torch.arange(3.0)}, metadata)
        contents.add((tmp_path / "a.safetensors").read_bytes())
    assert len(contents) == 1
    writing.write_tensors(tmp_path / "none.safetensors", {})
    assert load_file(tmp_path / "none.safetensors") == {}
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == metadata and torch.equal(file.get_tensor("w"), torch.arange(3.0))


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe{}", b"nothing"])
def test_a_json_file_that_is_damaged_is_named(content, tmp_path):
    (tmp_path / "note.json").write_bytes(content)
    with pytest.raises(ValueError, match="note.json is damaged: it is not JSON"):
        writing.read_json(tmp_path / "note.json")


def test_a_removal_that_is_killed_leaves_nothing_under_the_name(tmp_path):
    code = """
import os, sys
from pathlib import Path
from pipeline.files.writing import remove_folder
sys.addaudithook(lambda event, _: os._exit(9) if event == "os.rmdir" else None)
remove_folder(Path(sys.argv[1]))
"""
    (tmp_path / "copy" / "inner").mkdir(parents=True)
    (tmp_path / "copy" / "weights").touch()
    command = [sys.executable, "-c", code, str(tmp_path / "copy")]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == 9
    assert [path.name for path in tmp_path.iterdir()] == [".copy-old"]
    (tmp_path / "copy").mkdir()
    writing.remove_folder(tmp_path / "copy")
    assert not list(tmp_path.iterdir()), "what the killed one left goes with the next"


def test_modes_of_what_was_there_and_what_links_lead_to_are_left_alone(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir(0o700)
    (outside / "secret").touch(0o600)
    (folder / "inner").mkdir(parents=True)
    (folder / "key").touch(0o600)
    (folder / "tool").touch(0o755)
    (folder / "link").symlink_to(outside / "secret")
    (folder / "inner" / "link").symlink_to(outside)
    before = writing.states_in(folder)
    (folder / "key").unlink()
    (folder / "key").touch(0o644)
    (folder / "new").touch(0o600)
    (folder / "inner" / "new").mkdir(0o700)
    writing.set_modes_of_new(folder, before)
    modes = {path.name: path.lstat().st_mode & 0o777 for path in [*folder.iterdir(), *outside.iterdir(), outside]}
    mask = writing._mask()
    assert modes["key"] == 0o600 and modes["secret"] == 0o600 and modes["outside"] == 0o700
    assert modes["tool"] == 0o755 & ~mask and modes["new"] == 0o666 & ~mask
    assert (folder / "inner" / "new").stat().st_mode & 0o777 == 0o777 & ~mask
