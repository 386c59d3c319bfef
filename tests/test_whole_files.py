"""What has its name is complete: files and folders are written whole or not at all, and others may read them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline import whole_files

ROOT = Path(__file__).parents[1]


def test_every_kind_of_file_comes_back_and_others_may_read_it(tmp_path):
    values = {"arr_0": np.arange(6).reshape(2, 3)}
    tensors = {"weight": torch.arange(4.0)}
    whole_files.write_text(tmp_path / "new" / "text", "größer\n")
    whole_files.write_json(tmp_path / "json", {"b": 1, "a": None}, sort_keys=True)
    whole_files.write_arrays(tmp_path / "arrays.npz", values)
    whole_files.write_tensors(tmp_path / "tensors.safetensors", tensors, {"format": "pt"})
    assert (tmp_path / "new" / "text").read_text(encoding="utf-8") == "größer\n"
    assert (tmp_path / "json").read_text() == '{\n  "a": null,\n  "b": 1\n}\n'
    assert np.array_equal(np.load(tmp_path / "arrays.npz")["arr_0"], values["arr_0"])
    assert torch.equal(load_file(tmp_path / "tensors.safetensors")["weight"], tensors["weight"])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4, "no drafts are left"
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~whole_files._mask()}


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path):
    whole_files.write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        whole_files.write_json(tmp_path / "a.json", float("nan"), allow_nan=False)
    with pytest.raises(RuntimeError), whole_files.new_file(tmp_path / "a.json") as draft:
        draft.write_text("half")
        raise RuntimeError
    assert json.loads((tmp_path / "a.json").read_text()) == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_folder_takes_the_place_of_the_old_one_when_it_is_complete(tmp_path):
    with whole_files.new_folder(tmp_path / "model") as draft:
        (draft / "old").mkdir()
        (draft / "weights").touch(0o600)
    with pytest.raises(RuntimeError), whole_files.new_folder(tmp_path / "model") as draft:
        (draft / "half").touch()
        raise RuntimeError
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["old", "weights"]
    assert (tmp_path / "model" / "weights").stat().st_mode & 0o777 == 0o666 & ~whole_files._mask()
    whole_files.copy_folder(tmp_path / "model" / "old", tmp_path / "model2")
    with whole_files.new_folder(tmp_path / "model") as draft:
        (draft / "new").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model2"], "what an error left is gone, too"


def test_a_writer_that_is_killed_leaves_no_half_file(tmp_path):
    code = """
import sys, time
from pathlib import Path
from pipeline.whole_files import new_file
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
    whole_files.write_text(tmp_path / "file", "whole")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]
