"""Activations that are measured without computing them are those that are there when they are computed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline.checks.recipe import check_recipe
from pipeline.planning import needs
from pipeline.planning.memory import LiveMemory, measure_step
from pipeline.planning.needs import needs_of
from pipeline.planning.shadows import META, AsOnGpus, placed
from pipeline.planning.trainings import planned
from pipeline.recipes.schema import load

CPU = torch.device("cpu")


def test_what_is_alive_at_once_is_counted_and_what_is_let_go_is_not():
    with LiveMemory() as memory:
        one = torch.zeros(1000, device="meta")
        view = one.view(10, 100)
        two = view + 1
        assert memory.live == memory.peak == 8000
        del one, view
        assert memory.live == 4000
        three = two * two
        del two, three
    assert memory.live == 0 and memory.peak == 8000


def test_a_chain_of_layers_keeps_what_its_backward_pass_reads():
    """Eight layers of d to d with a ReLU: each keeps its output of [b, d] once, for ReLU and next layer."""
    width, depth = 64, 8
    with META:
        chain = nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())))
    peaks = []
    for images in (16, 32):
        x = torch.zeros(images, width, device="meta")
        with LiveMemory() as memory, AsOnGpus(torch.float32):
            chain(x).sum()
        peaks.append(memory.peak)
    layer = 4 * 16 * width
    assert layer * depth <= peaks[1] - peaks[0] <= layer * (depth + 2)


def test_autocast_is_that_of_gpus():
    with META:
        linear, norm = nn.Linear(8, 8), nn.GroupNorm(2, 8)
    x = torch.zeros(2, 8, 4, device="meta")
    with torch.autocast("cpu", torch.bfloat16), AsOnGpus(torch.bfloat16):
        y = linear(x.mT).mT
        assert y.dtype == torch.bfloat16 and norm(y).dtype == torch.float32 and y.softmax(1).dtype == torch.float32
        q = y[:, None]
        assert nn.functional.scaled_dot_product_attention(q, q, q).shape == q.shape
    with AsOnGpus(torch.bfloat16):
        assert linear(x.mT).dtype == torch.float32


def test_tied_parameters_stay_tied():
    with META:
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    placed(module, CPU)
    assert module[0].weight is module[1].weight and module[0].weight.device == CPU


TEXT = ["text.encoder={kind: byte_transformer, tokens: 8, width: 32}", "generator.condition=class_and_text"]
MEASURED = [("digits", []), ("digits_robust_flow", []), ("digits_repa", []), ("digits", TEXT)]


@pytest.mark.parametrize("name, settings", MEASURED, ids=["digits", "digits_robust_flow", "digits_repa", "text"])
def test_without_content_the_same_is_alive_as_with_it(name, settings):
    recipe = load(name, ["precision.generator=bf16", *settings])
    for training in planned(recipe, check_recipe(recipe), 10):
        without, computed = (measure_step(training, training.build(device), device) for device in (META, CPU))
        assert without.per_image == pytest.approx(computed.per_image, rel=0.05) and without.per_image > 0


def test_narrow_numbers_take_less():
    wide, narrow = (
        [one.step.per_image for one in needs_of(recipe, check_recipe(recipe), 10)]
        for recipe in (load("digits"), load("digits", ["precision=bf16"]))
    )
    assert all(0.4 * a < b < a for a, b in zip(wide, narrow))


def test_phases_that_differ_in_rates_alone_are_measured_once(monkeypatch):
    measured, measure = [], needs.measure
    monkeypatch.setattr(needs, "measure", lambda training: measured.append(training.place) or measure(training))
    recipe, main = load("digits"), "tokenizer.phases.main"
    phase = recipe.tokenizer.phases["main"]
    recipe.tokenizer.phases["again"] = replace(phase, loop=replace(phase.loop, batch=8, lr={"tokenizer": 0.1}))
    found = list(needs_of(recipe, check_recipe(recipe), 10))
    assert [one.place for one in found] == [main, "tokenizer.phases.again", "generator"]
    assert measured == [main, "generator"] and found[0].step == found[1].step and found[1].images(1) == 8
