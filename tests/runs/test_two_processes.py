"""Two processes of a command, of which one is killed: the other ends with a line, and the same command continues."""

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.processes import Started, start_script, start_two

ROOT = Path(__file__).parents[2]
RECIPE = """
name: tiny
data: {source: {kind: shapes, images: 24, held_out: 8, size: 16}, size: 16}
tokenizer:
  model: {kind: conv_autoencoder, width: 8, multipliers: [1], groups: 4, bottleneck: {kind: gaussian, dim: 4}}
  phases:
    main:
      losses: {pixel: {kind: pixel, norm: l2}}
      weights: {pixel: 1.0, kl: 1.0e-4}
      loop: {steps: 60, batch: 8, lr: {tokenizer: 1.0e-3}, save_every: 2, log_every: 1}
generator:
  network: {kind: diffusion_transformer, depth: 1, width: 32, heads: 2}
  objective: {kind: flow_matching}
  weights: {flow: 1.0}
  loop: {steps: 1, batch: 8, lr: {network: 1.0e-3}}
"""


def start_both(folder: Path) -> list[Started]:
    """The command in `folder` by two processes, with no launcher that would end the other."""
    return start_two(ROOT / "run.py", *command(folder), log=folder / "log", cwd=folder, TQDM_DISABLE="1")


def command(folder: Path) -> list[str]:
    """Of a short training; its recipe is written into the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(RECIPE)
    return ["train-tokenizer", "tiny.yaml"]


def weights(folder: Path) -> torch.Tensor:
    tensors = load_file(folder / "runs" / "tiny" / "tokenizer" / "diffusion_pytorch_model.tessera.safetensors")
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


def kill_one(both: list[Started], folder: Path) -> str:
    """Kill the second of two after a checkpoint; what the first writes before it ends."""
    while not list(folder.glob("runs/tiny/.tokenizer-*/phases/main/checkpoints/step_*")):
        assert all(each.process.is_alive() for each in both), both[0].printed()
        time.sleep(0.02)
    both[1].process.kill()
    assert both[0].wait(60) == 1
    return both[0].printed()


def test_where_one_of_two_is_killed_the_other_ends_with_a_line(tmp_path):
    both = start_both(tmp_path)
    errors = kill_one(both, tmp_path)
    lines = [line for line in errors.splitlines() if "tessera: " in line]
    assert "Traceback" not in errors, errors
    assert len(lines) == 1 and "another process of this command has ended; the same command continues" in lines[0]


@pytest.mark.slow
def test_two_that_were_killed_continue_to_where_one_alone_ends(tmp_path):
    alone = start_script(ROOT / "run.py", *command(tmp_path / "alone"), log=tmp_path / "log", cwd=tmp_path / "alone")
    kill_one(start_both(tmp_path / "two"), tmp_path / "two")
    for process in (*start_both(tmp_path / "two"), alone):
        process.finish()
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "alone"), atol=1e-4, rtol=0)
