"""Checkpoints: read without running anything, left out when damaged, exact whatever the layout in memory."""

import shutil

import pytest
import torch
from accelerate import Accelerator
from support.loop_task import Denoise, Numbers, fit, weights
from torch import nn

from pipeline.recipes.loops import Loop
from pipeline.training import checkpoints
from pipeline.training.checkpoints import restore_random_states, write_random_states
from pipeline.training.loop import TrainingRun, train


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A training of 8 steps with two checkpoints, at 4 and 8."""
    folder = tmp_path_factory.mktemp("stopped")
    fit(folder, steps=8, save_every=4, keep=2)
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return weights(fit(tmp_path_factory.mktemp("straight")))


def test_a_checkpoint_holds_tensors_and_json_alone(stopped):
    files = [path for path in (stopped / "checkpoints").rglob("*") if path.is_file()]
    assert len(files) == 2 * 9 and {path.suffix for path in files} == {".safetensors", ".json"}


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "missing"])
def test_a_damaged_newest_checkpoint_is_left_out_with_a_line(damage, stopped, straight, tmp_path, capsys):
    names = sorted(path.name for path in checkpoints.finished(stopped)[-1].iterdir())
    for name in names if damage == "flipped" else names[:1]:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(stopped, tmp_path / "run")
        hurt(checkpoints.finished(tmp_path / "run")[-1] / name, damage)
        assert torch.equal(straight, weights(fit(tmp_path / "run", keep=2))), name
        printed = capsys.readouterr().out
        assert printed.startswith("step_00000008 is left out: ") and printed.count("\n") == 1, printed
        assert name in printed or name == "checksums.json"  # whose own damage shows in another file


def hurt(path, damage):
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    else:
        path.write_bytes(content[: middle if damage == "cut" else 0])


def test_where_none_is_whole_the_message_says_what_to_delete(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    for checkpoint in checkpoints.finished(tmp_path / "run"):
        hurt(checkpoint / "maker.safetensors", "cut")
    with pytest.raises(ValueError, match="no checkpoint in .*checkpoints is whole; delete that folder"):
        fit(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    fit(tmp_path / "run")


def test_what_was_left_of_removed_checkpoints_and_drafts_is_not_taken_for_one(stopped, straight, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    newest = checkpoints.finished(tmp_path / "run")[-1]
    newest.rename(newest.with_name(f".{newest.name}-old"))
    (newest.with_name("draft_00000009") / "inner").mkdir(parents=True)
    assert torch.equal(straight, weights(fit(tmp_path / "run")))
    assert {path.name for path in newest.parent.iterdir()} == {"step_00000004", "step_00000012"}


class Convolve(Denoise):
    """Its weights and moments lie in memory channels last, as those of convolutional tokenizers do."""

    def __init__(self):
        super().__init__()
        maker = nn.Sequential(nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 6, 3, padding=1), nn.Flatten())
        self.players["maker"] = maker.to(memory_format=torch.channels_last)


def test_moments_that_lie_channels_last_resume_to_the_bit(tmp_path):
    def run(folder, steps):
        loop = Loop(steps=steps, batch=8, lr={"maker": 1e-2, "judge": 1e-2}, save_every=0)
        return weights(train(Convolve(), Numbers(), TrainingRun(loop, folder, 3, Accelerator(cpu=True))))

    straight = run(tmp_path / "a", 8)
    run(tmp_path / "b", 4)
    assert torch.equal(straight, run(tmp_path / "b", 8))


def test_the_global_random_states_come_back(tmp_path):
    import random

    import numpy as np

    def draws():
        return random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(()).item()

    random.gauss(0, 1)
    write_random_states(tmp_path / "random.safetensors")
    first = draws()
    restore_random_states(tmp_path / "random.safetensors")
    assert draws() == first


def test_tied_weights_are_saved_each(tmp_path):
    one = nn.Linear(3, 3)
    two = nn.Sequential(one, nn.Linear(3, 3))
    two[1].weight = one.weight
    separate = checkpoints.separate(two.state_dict())
    assert len({tensor.data_ptr() for tensor in separate.values()}) == 4
    assert torch.equal(separate["0.weight"], separate["1.weight"])
