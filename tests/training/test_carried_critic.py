"""A phase of the tokenizer may begin with the critic of the phase before it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from support.tiny_pipeline import make_recipe
from torch import Tensor

from pipeline.checks.tokenizer import check_tokenizer
from pipeline.critics.patch import Patch
from pipeline.recipes.schema import Recipe
from pipeline.runs.workspace import Workspace
from stages import train_tokenizer

CONV = {"kind": "conv_autoencoder", "bottleneck": {"kind": "gaussian", "dim": 3}, "width": 8, "multipliers": [1, 2]}


def recipe_of(second: dict[str, Any], between: bool = False) -> Recipe:
    """Two phases with a critic, which does not move in the second one; `between` them one without."""
    loop = {"steps": 2, "batch": 4, "lr": {"tokenizer": 1e-3, "critic": 1e-2}, "ema": 0.0}
    critic = {"critic": {"kind": "patch", "layers": 1, "width": 8}}
    phase = {"weights": {"pixel": 1.0, "kl": 1e-4, "adversarial": 0.1}, "loop": loop, "adversary": critic}
    still = {"loop": loop | {"lr": {"tokenizer": 1e-3, "critic": 0.0}}, "adversary": critic | second}
    plain = {"weights": {"pixel": 1.0, "kl": 1e-4}, "loop": loop | {"lr": {"tokenizer": 1e-3}}}
    phases = {"one": phase} | ({"plain": plain} if between else {}) | {"two": phase | still}
    return make_recipe(tokenizer={"model": CONV | {"blocks": 1, "groups": 4}, "phases": phases})


def critics(recipe: Recipe, folder: Path) -> list[dict[str, Tensor]]:
    check_tokenizer(recipe)
    out = folder / "out"
    out.mkdir()
    train_tokenizer.run(recipe, Workspace(folder, Accelerator(cpu=True)), out)
    return [Patch.from_pretrained(out / "phases" / name / "critic").state_dict() for name in ("one", "two")]


@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("between", [True, False])
def test_its_weights_are_those_that_the_last_phase_with_a_critic_left(tmp_path, carried, between):
    first, second = critics(recipe_of({"carried": carried}, between), tmp_path)
    assert all(torch.equal(value, second[name]) for name, value in first.items()) == carried


def test_there_must_be_one_of_the_same_make():
    recipe = recipe_of({"carried": True, "critic": {"kind": "patch", "layers": 1, "width": 4}})
    with pytest.raises(ValueError, match='phases.two.adversary.carried is true, but the critic before is .*"width": 8'):
        check_tokenizer(recipe)
    recipe.tokenizer.phases["one"].adversary.carried = True
    with pytest.raises(ValueError, match="phases.one.adversary.carried is true, but no phase before has a critic"):
        check_tokenizer(recipe)
