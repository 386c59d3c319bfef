"""One word of precision per stage: what it sets, what it leaves as it is, and which results depend on it."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.loop_task import Denoise, Numbers, weights
from torch import nn

import stages
from pipeline.components import build
from pipeline.files.writing import read_json
from pipeline.images.reading import Images
from pipeline.losses.base import Loss
from pipeline.recipes.arithmetic import StagePrecision
from pipeline.recipes.building import build_tokenizer, seed_initial_weights
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import load
from pipeline.runs import machine
from pipeline.runs.precision import arithmetic, rounding
from pipeline.runs.workspace import fingerprint
from pipeline.training.loop import TrainingRun, train
from pipeline.training.reconstruction import Reconstruction

CAPTIONS = "text={encoder: {kind: byte_transformer}}"
STAGES = [field.name for field in fields(StagePrecision)]


@pytest.mark.parametrize(
    "words", [["precision=bf16", "precision.sample=fp32"], ["precision.sample=fp32", "precision=bf16"]]
)
def test_a_word_alone_is_that_of_all_stages_but_those_that_have_their_own(words, tmp_path):
    precision = load("digits", words).precision
    assert {name: getattr(precision, name) for name in STAGES} == dict.fromkeys(STAGES, "bf16") | {"sample": "fp32"}
    recipe = tmp_path / "half.yaml"
    recipe.write_text("include: [digits]\nname: half\nprecision: bf16\n")
    assert load(str(recipe), ["precision.latents=tf32"]).precision == StagePrecision(
        *["bf16"] * 2, "tf32", *["bf16"] * 5
    )


def test_every_word_is_of_one_stage_and_its_result_alone_depends_on_it():
    computing = [stage for stage in stages.table() if stage.precision]
    assert sorted(stage.precision for stage in computing) == sorted(STAGES)
    posttrained = load("digits_robust_flow").posttrain
    assert posttrained is not None

    def uses(*settings: str) -> dict[str, str]:
        recipe = replace(load("digits_repae", [CAPTIONS, *settings]), posttrain=posttrained)
        return {stage.name: fingerprint(stages.load(stage.name).uses(recipe)) for stage in stages.table()}

    before = uses()
    for stage in computing:
        after = uses(f"precision.{stage.precision}=bf16")
        assert {name for name in before if after[name] != before[name]} == {stage.name}


def test_rounding_is_set_and_put_back():
    matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolutions.allow_tf32
    for word, allowed in (("fp32", False), ("tf32", True), ("bf16", True)):
        with pytest.raises(KeyError), arithmetic(torch.device("cpu"), word):
            assert (matmul.allow_tf32, convolutions.allow_tf32) == (allowed, allowed)
            assert torch.is_autocast_enabled("cpu") == (word == "bf16")
            with rounding("fp32"):
                assert not matmul.allow_tf32
            assert matmul.allow_tf32 == allowed
            raise KeyError
        assert (matmul.allow_tf32, convolutions.allow_tf32) == before


def test_fp16_is_none_of_the_cpus_in_whichever_stage(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    expected = r"precision.generator=fp16: cpu \(.*\) does not train in it; set precision.generator to fp32 or bf16"
    with pytest.raises(ValueError, match=expected):
        machine.start(load("digits", ["precision.generator=fp16"]))


class Watched(Denoise):
    """Notes whether autocast is on in the turns, and on the way back through them."""

    def __init__(self) -> None:
        super().__init__()
        self.there: list[bool] = []
        self.back: list[bool] = []

    def turns(self, batch, draws, step):
        for player, terms in super().turns(batch, draws, step):
            self.there.append(torch.is_autocast_enabled("cpu"))
            (value,) = terms.values()
            value.register_hook(lambda _: self.back.append(torch.is_autocast_enabled("cpu")))
            yield player, terms


def fit(folder: Path, precision: str, task: Denoise, **changes) -> torch.Tensor:
    settings = {"steps": 6, "batch": 8, "lr": {"maker": 1e-2, "judge": 1e-2}, "ema": 0.5, "save_every": 3} | changes
    run = TrainingRun(Loop(**settings), folder, 3, Accelerator(cpu=True), precision=precision)
    return weights(train(task, Numbers(), run))


def test_turns_are_narrow_and_their_gradients_and_weights_are_not(tmp_path):
    task = Watched()
    bf16 = fit(tmp_path / "bf16", "bf16", task)
    assert all(task.there) and len(task.there) == 12 and not any(task.back) and len(task.back) == 12
    assert bf16.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    fp32, tf32 = (fit(tmp_path / word, word, Denoise()) for word in ("fp32", "tf32"))
    assert torch.equal(fp32, tf32), "on a CPU nothing is rounded"
    assert not torch.equal(fp32, bf16)
    torch.testing.assert_close(fp32, bf16, atol=0.05, rtol=0.05)


def test_fp16_scales_its_losses_and_a_step_that_is_not_finite_lowers_the_scale(tmp_path):
    fp16 = fit(tmp_path / "a", "fp16", Denoise(poison=(4,)), keep=4)
    states = [read_json(path) for path in sorted(tmp_path.glob("a/checkpoints/*/progress.json"))]
    third, sixth = (state["scaler"]["scale"] for state in states)
    assert third > 1 and sixth == third / 2
    assert fp16.isfinite().all() and fp16.dtype == torch.float32
    resumed = fit(tmp_path / "b", "fp16", Denoise(poison=(4,)), steps=3)
    resumed = fit(tmp_path / "b", "fp16", Denoise(poison=(4,)))
    assert torch.equal(resumed, fp16)


class Probe(Loss):
    """A frozen layer in front of the images, which notes what it computes in."""

    terms = ("probe",)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1).requires_grad_(False)
        self.seen: set[torch.dtype] = set()

    def forward(self, images, rebuilt):
        outputs = self.layer(rebuilt.images)
        self.seen.add(outputs.dtype)
        return {"probe": outputs.float().square().mean()}


@pytest.mark.parametrize("losses, dtype", [("stage", torch.bfloat16), ("fp32", torch.float32)])
def test_frozen_networks_and_critics_compute_as_the_stage_does_or_in_fp32(tmp_path, losses, dtype):
    main = "tokenizer.phases.main"
    recipe = load(
        "digits",
        [
            f"{main}.loss_precision={losses}",
            f"{main}.losses.perceptual=null",
            f"{main}.weights={{pixel: 1, perceptual: null, probe: 1, kl: 1.0e-6, adversarial: 0.1}}",
            f"{main}.adversary={{critic: {{kind: patch, width: 8, layers: 1}}, start: 0, adaptive: true}}",
            f"{main}.loop={{steps: 2, batch: 8, lr: {{tokenizer: 1.0e-3, critic: 1.0e-3}}}}",
        ],
    )
    phase, probe, judged = recipe.tokenizer.phases["main"], Probe(), set()
    seed_initial_weights(0)
    critic = build("critics", phase.adversary.critic)
    layer = next(module for module in critic.modules() if isinstance(module, nn.Conv2d))
    layer.register_forward_hook(lambda module, inputs, output: judged.add(output.dtype))
    phase.losses["probe"] = {"kind": "pixel"}
    task = Reconstruction.__new__(Reconstruction)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.checks.phase.losses_of", lambda _: [Probe, type(build("losses", {"kind": "pixel"}))])
        task.__init__(
            build_tokenizer(recipe), phase, {"pixel": build("losses", {"kind": "pixel"}), "probe": probe}, critic
        )
    run = TrainingRun(phase.loop, tmp_path, 0, Accelerator(cpu=True), precision="bf16")
    train(task, Images(recipe.data, "train"), run)
    assert probe.seen == judged == {dtype}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(value == value for value in lines[-1].values())
