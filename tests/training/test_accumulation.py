"""`loop.accumulate` trains the same model up to rounding, but for what is declared to be of a whole batch."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.checks.accumulation import dependent_on_accumulation
from pipeline.components import build
from pipeline.images.reading import Images
from pipeline.recipes.building import build_tokenizer, seed_initial_weights
from pipeline.recipes.schema import Recipe, load
from pipeline.training.loop import TrainingRun, train
from pipeline.training.reconstruction import Reconstruction

SHAPES = {"kind": "shapes", "images": 24, "held_out": 2, "size": 16}
CONV = "{kind: conv_autoencoder, width: 8, multipliers: [1, 2], blocks: 1, groups: 4, bottleneck: %s}"
MAIN = "tokenizer.phases.main"
GAUSSIAN = ("{kind: gaussian, dim: 4}", "{pixel: 1.0, kl: 1.0e-4%s}")
PATCH = f"{MAIN}.adversary={{critic: {{kind: patch, width: 8, layers: 1%s}}, adaptive: false%s}}"
VQ = "{kind: vector_quantize, dim: 4, vocab: 16, %s}"
CASES = {  # bottleneck, weights of the terms, further settings, and whether the result depends on micro-batches
    "gaussian": (*GAUSSIAN, "", [], False),
    "codebook": (VQ % "restart: 0.1", "{pixel: 1.0, vq: 1.0, commit: 0.25}", "", [], False),
    "k-means": (VQ % "start: kmeans", "{pixel: 1.0, vq: 1.0, commit: 0.25}", "", [], True),
    "entropy": (VQ % "entropy_temperature: 0.1", "{pixel: 1.0, vq: 1.0, commit: 0.25, entropy: 0.1}", "", [], True),
    "parts": (
        "{kind: residual, codebooks: 2, bottleneck: {kind: binary, bits: 4}, scale: 0.5}",
        "{pixel: 1.0, commit: 0.25, entropy: 0.1}",
        "",
        [],
        True,
    ),
    "critic": (*GAUSSIAN, ", adversarial: 0.5", [PATCH % ("", "")], False),
    "batch norm": (*GAUSSIAN, ", adversarial: 0.5", [PATCH % (", norm: batch", "")], True),
    "lecam": (*GAUSSIAN, ", adversarial: 0.5", [PATCH % ("", ", lecam: 10, lecam_decay: 0.5")], True),
    "adaptive": (*GAUSSIAN, ", adversarial: 0.5", [PATCH.replace("false", "true") % ("", "")], True),
}


def small_recipe(name: str, accumulate: int) -> Recipe:
    bottleneck, weights, more, settings, _ = CASES[name]
    return load(
        "digits",
        [
            f"data={{source: {SHAPES}, size: 16}}".replace("'", ""),
            f"tokenizer.model={CONV % bottleneck}",
            f"{MAIN}.losses={{pixel: {{kind: pixel, norm: l2}}, perceptual: null}}",
            f"{MAIN}.adversary=null",
            *settings,
            f"{MAIN}.loop.batch=8",
            f"{MAIN}.loop.accumulate={accumulate}",
            f"{MAIN}.loop.steps=3",
            f"{MAIN}.loop.warmup=0",
            f"{MAIN}.loop.ema=0.5",
            *(f"{MAIN}.weights.{term}=null" for term in ("perceptual", "adversarial", "kl")),
            f"{MAIN}.weights={weights % more if '%' in weights else weights}",
            f"{MAIN}.loop.lr={{tokenizer: 1.0e-3, critic: {'1.0e-3' if settings else 'null'}}}",
        ],
    )


def trained(recipe: Recipe, folder: Path) -> Tensor:
    """All weights after the phase, in a row."""
    phase = recipe.tokenizer.phases["main"]
    seed_initial_weights(0)
    losses = {name: build("losses", node) for name, node in phase.losses.items()}
    critic = build("critics", phase.adversary.critic) if phase.adversary else None
    task = Reconstruction(build_tokenizer(recipe), phase, losses, critic)
    averages = train(task, Images(recipe.data, "train"), TrainingRun(phase.loop, folder, 0, Accelerator(cpu=True)))
    return torch.cat([value.flatten().double() for value in averages["tokenizer"].state_dict().values()])


@pytest.mark.parametrize("name", CASES)
def test_what_depends_on_micro_batches_is_declared(name, tmp_path):
    whole, parts = small_recipe(name, 1), small_recipe(name, 2)
    difference = (trained(whole, tmp_path / "whole") - trained(parts, tmp_path / "parts")).abs().max()
    depends = CASES[name][-1]
    assert (difference > 1e-4) == depends, f"{difference:.2g}"
    assert not dependent_on_accumulation(whole)
    assert bool(dependent_on_accumulation(parts)) == depends
