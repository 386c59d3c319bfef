"""A run's folder: what an artefact was made from, what is left when a command is stopped, and who has the folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from pipeline.recipes.schema import load, settings
from pipeline.runs import lock, workspace
from pipeline.runs.finished import run_folder
from pipeline.runs.workspace import Workspace, read_values

ROOT = Path(__file__).parents[2]


@pytest.fixture
def work(tmp_path) -> Workspace:
    return Workspace(tmp_path / "run", Accelerator(cpu=True))


def make(work: Workspace, name: str = "tokenizer", because: str = "first", **provenance) -> None:
    with work.publish(name, because, **provenance) as out:
        (out / "weights").write_bytes(b"0123456789")


def test_the_history_of_an_artefact_names_each_after_what_it_reads(work):
    line = {"tokenizer": [], "latents": ["tokenizer"], "generator": ["latents", "tokenizer"], "other": []}
    for name, reads in line.items():
        make(work, name, f"hash of {name}", reads=reads)
    assert list(work.history(["generator"])) == ["tokenizer", "latents", "generator"]
    assert list(work.history(["tokenizer", "generator"])) == ["tokenizer", "latents", "generator"]
    assert work.history(["generator"])["latents"]["hash"] == "hash of latents"
    assert work.history(["nowhere"]) == {}


def test_an_unfinished_artefact_has_no_name_and_its_draft_goes_with_the_next(work):
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


def test_an_unfinished_training_of_other_settings_stays_and_is_named(work, capsys):
    with pytest.raises(KeyboardInterrupt), work.publish("generator", "first") as out:
        (out / "checkpoints" / "step_00000100").mkdir(parents=True)
        raise KeyboardInterrupt
    make(work, "generator", "second")
    assert f"{out} holds an unfinished training of other settings" in capsys.readouterr().out
    with work.publish("generator", "first") as again:
        assert (again / "checkpoints" / "step_00000100").is_dir()
    assert [path.name for path in work.root.iterdir()] == ["generator"]


def test_the_seconds_of_all_tries_are_added_whatever_the_clock_says(work, monkeypatch):
    monkeypatch.setattr("time.time", iter(range(0, -(10**9), -(10**7))).__next__)  # set back at every look
    with pytest.raises(KeyboardInterrupt), work.publish("tokenizer", "first"):
        raise KeyboardInterrupt
    make(work)
    assert 0 <= work.history(["tokenizer"])["tokenizer"]["seconds"] < 60


def killed_at(event: str, number: int, root: Path) -> int:
    """Finish an artefact in a process that ends hard at this audit event; how many there were, where it did not."""
    if not (child := os.fork()):
        calls = []

        def count(name: str, arguments: tuple) -> None:
            if name == event:
                calls.append(name)
                if len(calls) == number:
                    os._exit(0)

        with Workspace(root, Accelerator(cpu=True)).publish("tokenizer", "first") as out:
            for name in ("checkpoints/step_1", "phases/main/checkpoints/step_1"):
                (out / name).mkdir(parents=True)
                (out / name / "weights").touch()
            (out / "weights").write_bytes(b"0123456789")
            (out / ".half").touch()
            sys.addaudithook(count)
        os._exit(len(calls))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("event", ["os.rename", "os.rmdir", "os.remove", "os.chmod", "open"])
def test_a_command_that_is_killed_while_it_finishes_an_artefact_is_completed_by_the_next(event, tmp_path):
    calls = killed_at(event, 0, tmp_path / "whole")
    assert calls
    for number in range(1, calls + 1):
        root = tmp_path / str(number)
        assert killed_at(event, number, root) == 0
        work = Workspace(root, Accelerator(cpu=True))
        if not work.current("tokenizer", "first"):
            make(work)
        assert work.current("tokenizer", "first")
        work.verify("tokenizer")
        assert sorted(path.name for path in root.iterdir()) == ["tokenizer"]
        assert not [path for path in root.rglob("*") if path.name in ("checkpoints", ".half", ".seconds")]


@pytest.mark.parametrize("damage", [b"01234", b"", b"0123456798", None])
def test_a_damaged_artefact_is_named_with_what_to_delete(work, damage):
    make(work)
    work.verify("tokenizer")
    file = work.root / "tokenizer" / "weights"
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(ValueError, match=f"{file} is (damaged|missing).*; delete {file.parent}, and it is made again"):
        work.verify("tokenizer")
    if damage is None or len(damage) != 10:
        with pytest.raises(ValueError, match=f"{file} is (damaged|missing)"):
            work.current("tokenizer", "first")
    shutil.rmtree(file.parent)
    assert not work.current("tokenizer", "first")


@pytest.mark.parametrize(
    "change", [lambda text: "", lambda text: text[:40], lambda text: text.replace("first", "farst")]
)
def test_a_damaged_note_is_named_with_what_to_delete(work, change):
    make(work)
    note = work.root / "tokenizer" / "made_from.json"
    note.write_text(change(note.read_text()))
    for look in (lambda: work.current("tokenizer", "first"), lambda: work.history(["tokenizer"])):
        with pytest.raises(ValueError, match=f"{note} is damaged.*; delete {note.parent}, and it is made again"):
            look()


def test_a_note_without_a_hash_of_itself_is_read(work):
    make(work)
    note = work.root / "tokenizer" / "made_from.json"
    note.write_text(json.dumps({"hash": "earlier"}))
    (note.parent / "checksums.json").unlink()
    assert work.current("tokenizer", "earlier")


def test_the_recipe_of_a_run_is_that_of_its_newest_artefact(work):
    with work.claim("digits", "seed: 0\n"):
        make(work)
    with pytest.raises(ValueError, match="refused"), work.claim("digits", "seed: 5\n"):
        raise ValueError("refused")
    assert (work.root / "recipe.yaml").read_text() == workspace.recipe_text("digits", "seed: 0\n")
    with work.claim("digits", "seed: 5\n"):
        make(work, "generator")
    assert (work.root / "recipe.yaml").read_text() == workspace.recipe_text("digits", "seed: 5\n")
    make(work, "card")
    with pytest.raises(ValueError, match="holds a run of digits, not of shapes"), work.claim("shapes", ""):
        pass


def test_a_folder_that_a_killed_command_began_is_claimed_again(work):
    work.root.mkdir()
    for name in (".lock", "recipe.yaml"):
        (work.root / name).touch()
        with work.claim("digits", "seed: 0\n"):
            pass
    (work.root / "recipe.yaml").unlink()
    (work.root / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not a run"), work.claim("digits", ""):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "runs").touch()
    work = Workspace(tmp_path / "runs" / "digits", Accelerator(cpu=True))
    with pytest.raises(ValueError, match="runs/digits cannot be made: Not a directory"), work.claim("digits", ""):
        pass


HOLD = """
import sys, time
from pathlib import Path
from pipeline.runs.lock import hold
with hold(Path(sys.argv[1]), "runs/digits"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_command_names_the_first_and_may_begin_when_that_was_killed(tmp_path, monkeypatch, capsys):
    file = tmp_path / ".lock"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(file), "all", "digits"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert first.stdout.readline() == "held\n"
    refused = rf"^runs/digits is in use by process {first.pid} on \S+ since [\d: -]+ \(-c .*all digits\); wait"
    with pytest.raises(ValueError, match=refused), lock.hold(file, "runs/digits"):
        pass
    monkeypatch.setattr(lock, "take", lambda descriptor, what: False)  # as on a file system without locks
    with pytest.raises(ValueError, match=refused), lock.hold(file, "runs/digits"):
        pass
    first.kill()
    first.wait()
    with lock.hold(file, "runs/digits"):
        assert "a file system without locks" in capsys.readouterr().out
    monkeypatch.undo()
    with lock.hold(file, "runs/digits"):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert file.read_text() == ""


def test_a_complete_draft_whose_note_is_damaged_is_not_taken(work):
    draft = work.root / ".tokenizer-first"
    draft.mkdir(parents=True)
    (draft / workspace.NOTE).touch()
    assert not work.current("tokenizer", "first")


def test_a_recipe_file_that_is_not_what_was_written_is_named(work, monkeypatch):
    monkeypatch.chdir(work.root.parent)
    with work.claim("digits", settings(load("digits"))):
        pass
    file = work.root / "recipe.yaml"
    whole = file.read_text()
    assert run_folder(str(work.root)) == work.root and load(str(file)) == load("digits")
    for damaged in ("", whole[: len(whole) // 2], whole.replace("seed: 0", "seed: 1")):
        file.write_text(damaged)
        with pytest.raises(ValueError, match="recipe.yaml is damaged"):
            run_folder(str(work.root))
    first, _, *rest = whole.splitlines(keepends=True)
    file.write_text(first + "".join(rest).replace("seed: 0", "seed: 1"))
    assert load(str(run_folder(str(work.root)) / "recipe.yaml")).seed == 1, "changed on purpose"


def test_a_value_that_is_read_of_an_artefact_is_compared(work):
    with work.publish("report", "first") as out:
        (out / "metrics.json").write_text('{"psnr": 31}')
    report = work.root / "report"
    assert read_values(report, "metrics.json") == {"psnr": 31} and read_values(report, "card.json") is None
    (report / "metrics.json").write_text('{"psnr": 33}')
    with pytest.raises(ValueError, match="metrics.json is damaged: it is not what was written; delete .*report"):
        read_values(report, "metrics.json")
