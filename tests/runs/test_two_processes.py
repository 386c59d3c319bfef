"""Two processes of a command, of which one is killed: the other ends with a line, and the same command continues."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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


def start(folder: Path, rank: int | None = None, port: int = 0) -> subprocess.Popen:
    """The command in `folder`: alone, or one of two that meet at `port`, with no launcher that would end the other."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(RECIPE)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    if rank is not None:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        environment |= meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    command = [sys.executable, str(ROOT / "run.py"), "train-tokenizer", "tiny.yaml"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def start_two(folder: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(folder, rank, port) for rank in (0, 1)]


def weights(folder: Path) -> torch.Tensor:
    tensors = load_file(folder / "runs" / "tiny" / "tokenizer" / "diffusion_pytorch_model.tessera.safetensors")
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


def kill_one(both: list[subprocess.Popen], folder: Path) -> str:
    """Kill the second of two after a checkpoint; what the first writes before it ends."""
    while not list(folder.glob("runs/tiny/.tokenizer-*/phases/main/checkpoints/step_*")):
        assert all(process.poll() is None for process in both), both[0].communicate()
        time.sleep(0.02)
    both[1].send_signal(signal.SIGKILL)
    _, errors = both[0].communicate(timeout=60)
    both[1].communicate()
    return errors


def test_where_one_of_two_is_killed_the_other_ends_with_a_line(tmp_path):
    both = start_two(tmp_path)
    errors = kill_one(both, tmp_path)
    lines = [line for line in errors.splitlines() if "tessera: " in line]
    assert both[0].returncode == 1 and "Traceback" not in errors, errors
    assert len(lines) == 1 and "another process of this command has ended; the same command continues" in lines[0]


@pytest.mark.slow
def test_two_that_were_killed_continue_to_where_one_alone_ends(tmp_path):
    alone = start(tmp_path / "alone")
    kill_one(start_two(tmp_path / "two"), tmp_path / "two")
    again = start_two(tmp_path / "two")
    printed = [process.communicate(timeout=120) for process in (*again, alone)]
    assert [process.returncode for process in (*again, alone)] == [0, 0, 0], printed
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "alone"), atol=1e-4, rtol=0)
