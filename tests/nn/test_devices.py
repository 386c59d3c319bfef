"""What a device can do, and the line on an accelerator without float64, which no machine has: a fake one."""

import json
import os
from pathlib import Path

import pytest
import torch
from support.fresh_process import run_fresh

from pipeline.nn import devices
from pipeline.optimizers.adamw import AdamW
from pipeline.optimizers.base import Grouping
from pipeline.runs import machine

TESTS = Path(__file__).parents[1]
APPLE = torch.device("mps")  # an object alone: nothing lies on it
ON_FACET = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from accelerate import Accelerator
from support import fake_accelerator, loop_task
facet = fake_accelerator.install()
from support.tiny_pipeline import make_pipeline, make_tokenizer, pixels
from pipeline.draws import StepDraws
from pipeline.images.reading import Images
from pipeline.latents.encoding import EncodingPlan
from pipeline.latents.scale import measure
from pipeline.nn import devices
from pipeline.recipes.latents import Latents
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import load
from pipeline.runs import machine
from pipeline.training.loop import TrainingRun, train

def message(do, *arguments):
    try:
        do(*arguments)
    except ValueError as error:
        return str(error)

def trained(accelerator, folder, *steps):
    for last in steps:
        loop = Loop(steps=last, batch=8, lr={"maker": 1e-2, "judge": 1e-2}, ema=0.9, save_every=0)
        task = loop_task.Denoise()
        players = train(task, loop_task.Numbers(), TrainingRun(loop, folder, 3, accelerator))
    assert accelerator.device.type == {p.device.type for p in task.players["maker"].parameters()}.pop()
    return loop_task.weights(players).cpu()

def drawn(device):
    draws = StepDraws(3, 5, slice(2, 6), 8, device)
    return [draws.normal("a", (4,)), draws.uniform("b"), draws.keep_mask("c", (9,), 0.3), draws.uniform_of_all("d")]

folder, cpu = Path(sys.argv[2]), torch.device("cpu")
facts = {"device": devices.current_device().type, "describe": devices.describe(facet), "count": devices.device_count()}
facts["refused"] = message(machine.check_precision, "fp16", "precision.generator")
facts["taken"] = message(machine.check_precision, "bf16")
facts["drawn"] = [(a.device.type, torch.equal(a.cpu(), b)) for a, b in zip(drawn(facet), drawn(cpu))]
made = [pixels(make_pipeline().to(device), [1, 2], [5, 6]) for device in (cpu, facet)]
facts["sampled"] = float((made[0] - made[1].cpu()).abs().max())
accelerator, images = machine.accelerate(), Images(load("digits").data, "held_out")
facts["accelerator"] = accelerator.device.type
resumed = trained(accelerator, folder / "facet", 5, 9)
plan, scales = EncodingPlan(Latents(), 0, "fp32"), []
scales.append(measure(make_tokenizer(), images, plan, accelerator))
os.environ |= {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}
facts["alone"] = message(machine.accelerate)
os.environ["ACCELERATE_USE_CPU"] = "true"
facts["asked"] = devices.current_device().type
del os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]
type(accelerator.state)._reset_state(True)
accelerator = machine.accelerate()
facts["trained"] = float((resumed - trained(accelerator, folder / "cpu", 9)).abs().max())
scales.append(measure(make_tokenizer(), images, plan, accelerator))
facts["scale"] = [float((one - two).abs().max()) for one, two in zip(*scales)]
print(json.dumps(facts))
"""


def test_what_the_cpu_can_do():
    cpu = torch.device("cpu")
    assert devices.computes_in(cpu, torch.float64) and devices.autocast_types(cpu) == (torch.bfloat16,)
    assert not devices.copies_pinned(cpu) and not devices.rounds_products(cpu) and not devices.random_states(cpu)
    free, whole = devices.memory(cpu)
    assert 0 < free <= whole
    assert ": fp32, bf16; float64, fused optimisers" in devices.describe(cpu)


def test_what_torch_says_of_an_apple_gpu():
    assert devices.has_fused_updates(APPLE) and not devices.copies_pinned(APPLE)
    assert not devices.rounds_products(APPLE)
    assert not devices.has_fused_updates(torch.device("vulkan"))


def test_the_variable_of_accelerate_asks_for_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: APPLE)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert devices.current_device() == APPLE
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert devices.uses_cpu() and devices.current_device() == torch.device("cpu") and devices.device_count() == 1
    assert machine.accelerate().device == torch.device("cpu")


def test_random_states_come_back():
    before = torch.get_rng_state()
    with pytest.raises(KeyError), devices.keep_random_states(torch.device("cpu")):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_an_optimiser_is_fused_where_the_device_has_such_kernels(monkeypatch):
    layer = torch.nn.Linear(2, 2)
    for has, expected in ((True, True), (False, None)):
        monkeypatch.setattr("pipeline.optimizers.base.has_fused_updates", lambda device, has=has: has)
        assert AdamW().build(layer, Grouping()).defaults["fused"] is expected


@pytest.mark.slow
def test_an_accelerator_without_float64_trains_samples_and_resumes_as_the_cpu_does(tmp_path):
    facts = json.loads(run_fresh(ON_FACET, TESTS, tmp_path).splitlines()[-1])
    assert facts["device"] == facts["accelerator"] == "facet" and facts["count"] == 1
    assert facts["describe"] == "facet, facet: fp32, bf16; fused optimisers"
    expected = "precision.generator=fp16: facet (facet) does not train in it; set precision.generator to fp32 or bf16"
    assert facts["refused"] == expected and facts["taken"] is None
    assert facts["drawn"] == [["facet", True]] * 4
    assert facts["sampled"] < 1e-5 and facts["trained"] < 1e-6 and max(facts["scale"]) < 1e-5
    assert facts["alone"].startswith("2 processes cannot train together on facet; start one, or set ACCELERATE_USE_CPU")
    assert facts["asked"] == "cpu"


@pytest.mark.slow
def test_the_whole_line_runs_on_an_accelerator_without_float64(tmp_path):
    short = ["tokenizer.phases.main.loop.steps=4", "generator.loop.steps=4", "sample.images=10", "evaluate.images=40"]
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from support import fake_accelerator as fake; fake.main()"
    run_fresh(code, TESTS, "all", "digits", *short, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(TESTS.parent)})
    assert (tmp_path / "runs/digits/pipeline/model_index.json").exists()
    note = json.loads((tmp_path / "runs/digits/generator/made_from.json").read_text())
    assert note["device"] == "facet"
