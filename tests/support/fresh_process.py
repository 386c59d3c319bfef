"""Code in a Python process of its own, for tests of what comes back from disk."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from support.processes import start

ROOT = Path(__file__).parents[2]


def run_fresh(code: str, *arguments: object, cwd: Path = ROOT, **options: Any) -> str:
    """What `code` prints with these arguments in sys.argv[1:]; where it fails, so does the test, with its errors."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answers_of_saved(folder: Path, calls: dict[str, tuple]) -> dict[str, Any]:
    """What models answer after they were saved to `folder` and loaded by a process that runs there.

    `calls` are tuples of a model's bound method and its arguments, by name.
    """
    stated = {}
    for name, (method, *inputs) in calls.items():
        model = method.__self__
        model.save_pretrained(folder / name)
        stated[name] = (type(model).__module__, type(model).__name__, method.__name__, inputs)
    torch.save(stated, folder / "calls.pt")
    start(answer, torch.get_num_threads(), log=folder / "log", cwd=folder).finish()
    return torch.load(folder / "answers.pt", weights_only=False)


@torch.no_grad()
def answer(threads: int) -> None:
    """Call what `calls.pt` of this folder states and store what comes back."""
    torch.set_num_threads(threads)
    answers = {}
    for name, (module, kind, method, inputs) in torch.load("calls.pt", weights_only=False).items():
        model = getattr(importlib.import_module(module), kind).from_pretrained(name)
        answers[name] = getattr(model, method)(*inputs)
    torch.save(answers, "answers.pt")
