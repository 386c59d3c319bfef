"""The command line: its help, its one-line answers to mistakes, and what a new stage or a new command costs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.fresh_process import run_fresh

import stages
from pipeline import program
from pipeline.commands import COMMANDS
from pipeline.recipes.schema import load
from run import find_stages

ROOT = Path(__file__).parents[1]
STAGE = '''"""Counts the training images."""

from pipeline.images.reading import Images

READS = ()
WRITES = "count"


def uses(recipe):
    return recipe.data


def run(recipe, work, out):
    (out / "count.txt").write_text(str(len(Images(recipe.data, "train"))))
'''
COMMAND = '''"""`greet NAME`: a greeting."""


def greet(words):
    """Greet whoever is named."""
    print("hello", *words)
'''


def run(*arguments: str, tree: Path = ROOT, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(tree / "run.py"), *arguments], cwd=cwd, capture_output=True, text=True)


def test_the_command_line_answers_with_one_line_and_status_2(tmp_path):
    for arguments, message in [
        (["al", "digits"], "did you mean 'all'"),
        (["all"], "needs a recipe"),
        (["card"], "card needs RUN|FOLDER; type: python "),
        (["sample"], "sample needs a recipe"),
        (["all", "digitz"], "did you mean 'digits'"),
        (["all", "digits", "sample.step=3"], "did you mean 'steps'"),
    ]:
        result = run(*arguments, cwd=tmp_path)
        assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
        assert not list(tmp_path.iterdir()), "nothing is written"
    assert "Traceback" in run("--debug", "all", "digitz", cwd=tmp_path).stderr


def test_help_needs_no_torch():
    code = "import sys, run; status = run.main(['--help']); print(*sys.modules); sys.exit(status)"
    *lines, imported = run_fresh(code).splitlines()
    assert any("train-generator RECIPE" in line for line in lines) and "torch" not in imported.split()


def test_every_command_says_what_it_does():
    for command in COMMANDS:
        text = command.help()
        assert len(text.splitlines()[0]) < 121 and text.splitlines()[0].endswith("."), command.name
        assert command.purpose[0].islower(), "as the stages' lines"
    for stage in stages.table():
        module = stages.load(stage.name)
        assert (module.READS, module.WRITES, module.__doc__.strip()) == (stage.reads, stage.writes, stage.purpose)
        assert stage.purpose.splitlines()[0].endswith("."), "a sentence"


def test_the_readme_shows_the_stages_there_are():
    assert stages.picture() in (ROOT / "README.md").read_text(encoding="utf-8")
    made = [stage.writes for stage in stages.table()]
    for number, stage in enumerate(stages.table()):
        assert {*stage.reads, *stage.reads_where_made} <= set(made[:number]), (
            "a stage reads what earlier ones have made"
        )


def test_a_recipe_without_a_generator_has_the_stages_of_a_tokenizer():
    whole, alone = load("digits"), load("digits", ["generator=null"])
    assert [stage.name for stage in stages.line(whole)] == [name for name in stages.ORDER if name != "encode_text"]
    assert {stage.name: stage.reads for stage in stages.line(alone)} == {
        "train_tokenizer": (),
        "evaluate": ("tokenizer",),
        "publish": ("tokenizer", "report"),
    }
    commands = [find_stages(alone, name)[1] for name in ("train_tokenizer", "evaluate", "publish")]
    assert commands == ["evaluate", "publish", "card"] and find_stages(whole, None)[1] == "sample"
    told = "^digits has no stage sample, for it has no generator; it has train-tokenizer, evaluate, publish$"
    with pytest.raises(ValueError, match=told):
        find_stages(alone, "sample")


def test_a_command_prints_its_own_help(tmp_path):
    for arguments, expected in [
        (["train-generator", "--help"], ["latents/, joint/", "runs/<name>/generator/"]),
        (["sample", "-h"], ["sample RECIPE", "sample FOLDER|HUB_ID", "batch: int (1 or more) = 16"]),
        (["all", "digits", "--help"], ["train-tokenizer, train-jointly"]),
    ]:
        text = run(*arguments, cwd=tmp_path).stdout
        assert all(part in text for part in expected), text
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # tests/test_extending.py adds one of each by the page that says how
def test_a_stage_and_a_command_cost_a_file_and_a_line_each(tmp_path):
    for name in ("pipeline", "stages", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", tmp_path)
    (tmp_path / "stages/count_images.py").write_text(STAGE)
    (tmp_path / "pipeline/commands/greet.py").write_text(COMMAND)
    table = tmp_path / "stages/__init__.py"  # without the others, whose training takes long
    table.write_text(table.read_text().replace("ORDER = (", 'ORDER = ("count_images",)\nOTHERS = ('))
    rows = tmp_path / "pipeline/commands/__init__.py"
    row = 'Command("greet", "NAME", "greets", "pipeline.commands.greet:greet"),'
    rows.write_text(rows.read_text().replace("COMMANDS = (", f"COMMANDS = (\n    {row}"))
    here = {"tree": tmp_path, "cwd": tmp_path}
    text = run("--help", **here).stdout
    assert "  count-images RECIPE       counts the training images -> count/\n" in text
    assert "  greet NAME                greets\n" in text
    assert run("greet", "you", **here).stdout == "hello you\n"
    assert "Greet whoever is named." in run("greet", "--help", **here).stdout
    done = run("all", "digits", **here)
    assert done.returncode == 0, done.stderr
    assert int((tmp_path / "runs/digits/count/count.txt").read_text()) > 1000
    assert "is up to date" in run("count-images", "digits", **here).stdout


@pytest.mark.parametrize(
    ("started", "typed"),
    [
        ("run.py", "python run.py all digits"),
        ("/opt/tessera/run.py", "python /opt/tessera/run.py all digits"),
        ("/usr/bin/tessera", "tessera all digits"),
        ("/usr/bin/pytest", "python run.py all digits"),
    ],
)
def test_messages_name_the_program_as_it_was_typed(monkeypatch, started, typed):
    monkeypatch.setattr(program.sys, "argv", [started])
    assert program.command_line("all", "digits") == typed
    launched = typed.removeprefix("python ") if "run.py" in typed else f"--no-python {typed}"
    assert program.launch_line("all", "digits") == f"torchrun --nproc_per_node 8 {launched}"
