"""A run's folder: what an artefact was made from is found through the notes beside it."""

import pytest
from accelerate import Accelerator

from pipeline.runs.workspace import Workspace


def test_the_history_of_an_artefact_names_each_after_what_it_reads(tmp_path):
    work = Workspace(tmp_path / "run", Accelerator(cpu=True))
    line = {"tokenizer": [], "latents": ["tokenizer"], "generator": ["latents", "tokenizer"], "other": []}
    for name, reads in line.items():
        with work.publish(name, f"hash of {name}", reads=reads) as out:
            (out / "file").touch()
    assert list(work.history(["generator"])) == ["tokenizer", "latents", "generator"]
    assert list(work.history(["tokenizer", "generator"])) == ["tokenizer", "latents", "generator"]
    assert work.history(["generator"])["latents"]["hash"] == "hash of latents"
    assert work.history(["nowhere"]) == {}


def test_an_unfinished_artefact_has_no_name_and_its_draft_goes_with_the_next(tmp_path):
    work = Workspace(tmp_path / "run", Accelerator(cpu=True))
    with pytest.raises(KeyboardInterrupt), work.publish("tokenizer", "first") as out:
        (out / "half").touch()
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="has not been made yet; type: python .*run.py all RECIPE"):
        work.artefact("tokenizer")
    with work.publish("tokenizer", "first") as out:
        assert (out / "half").exists(), "the same work continues in its draft"
    with work.publish("tokenizer", "second") as out:
        assert not list(out.iterdir())
    assert work.current("tokenizer", "second") and not work.current("tokenizer", "first")
    assert [path.name for path in work.root.iterdir()] == ["tokenizer"]
