"""Trainings whose players are divided among two processes: the same as in one, also when the number changes midway."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.processes import start_two
from support.sharded_training import fit, task_of
from torch import Tensor

TESTS = Path(__file__).parents[1]
SLOW = pytest.mark.slow
KINDS = ("adamw", *(pytest.param(kind, marks=SLOW) for kind in ("tokenizer", "muon", "adapter")))


def fit_in_two(kind: str, folder: Path, steps: int, sharded: str = "sharded") -> dict[str, Tensor]:
    script = TESTS / "support" / "sharded_training.py"
    for process in start_two(script, kind, folder, steps, sharded, log=folder.with_suffix(".log")):
        process.finish()
    return torch.load(folder / "averages.pt", weights_only=True)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def trained(kind, tmp_path_factory):
    """Folder and averages of six steps in one process, and of three steps in two, divided."""
    alone, half = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("half")
    return kind, alone, fit(kind, alone), half, fit_in_two(kind, half, 3)


def assert_equal_up_to_rounding(kind: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Adam turns what a gradient of zero has of rounding into steps of full length, so the whole is compared."""
    start = {
        f"{name}.{key}": v
        for name, player in task_of(kind)[0].players.items()
        for key, v in player.state_dict().items()
    }
    assert ours.keys() == theirs.keys() == start.keys()
    moved = sum((theirs[name].double() - value.double()).square().sum() for name, value in start.items()).sqrt()
    apart = sum((theirs[name].double() - value.double()).square().sum() for name, value in ours.items()).sqrt()
    assert moved > 0.01 and apart < 0.01 * moved


def test_three_steps_divided_are_those_of_one_process(trained, tmp_path):
    kind, _, _, _, divided = trained
    assert_equal_up_to_rounding(kind, divided, fit(kind, tmp_path, 3))


def test_what_two_processes_began_divided_one_goes_on_with(trained, tmp_path):
    kind, _, straight, half, _ = trained
    shutil.copytree(half, tmp_path / "run")
    assert_equal_up_to_rounding(kind, fit(kind, tmp_path / "run"), straight)


def test_what_one_process_began_two_go_on_with_divided(trained, tmp_path):
    kind, alone, straight, _, _ = trained
    shutil.copytree(alone, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000006")
    assert_equal_up_to_rounding(kind, fit_in_two(kind, tmp_path / "run", 6), straight)


def test_a_checkpoint_of_divided_players_is_whole(trained):
    kind, alone, _, half, _ = trained
    files = {path.name for path in (alone / "checkpoints" / "step_00000003").iterdir()}
    divided = half / "checkpoints" / "step_00000003"
    assert files | {"random_1.safetensors"} == {path.name for path in divided.iterdir()}
    for name in files - {"random_0.safetensors"}:
        if name.endswith(".safetensors"):
            one, two = load_file(alone / "checkpoints" / "step_00000003" / name), load_file(divided / name)
            assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in two.items()}
