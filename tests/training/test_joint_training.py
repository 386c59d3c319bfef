"""Joint training of tokenizer and generator: which term moves what, shared draws, the scale of codes, its place."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from support.processes import start_two
from support.tiny_pipeline import randomised
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.checks.recipe import check_recipe
from pipeline.code import Batched, Condition
from pipeline.components import build, structure
from pipeline.critics.patch import Patch
from pipeline.draws import StepDraws
from pipeline.frozen import stand_in
from pipeline.images.reading import ImageBatch, Images
from pipeline.latents.encoding import EncodingPlan
from pipeline.latents.scale import measure, of_channels
from pipeline.losses.pixel import Pixel
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.nn.running_norm import RunningNorm
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.building import build_tokenizer
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import Recipe, load
from pipeline.recipes.tokenizer_training import Phase, TokenizerTraining
from pipeline.runs.workspace import NOTE, Workspace, fingerprint
from pipeline.teachers.base import Tap
from pipeline.teachers.classifier import Classifier
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.training.ema import Average
from pipeline.training.generation import Generation
from pipeline.training.joint import JointTraining
from pipeline.training.loop import TrainingRun, train
from pipeline.training.overfitting import read_previews
from stages import encode_dataset, posttrain_decoder, train_generator, train_jointly

ROOT = Path(__file__).parents[2]
DIM, GRID, CLASSES, BLOCK, ALIGNMENT = 3, [4, 4], 5, 2, 1.5
WEIGHTS = {"pixel": 1.0, "kl": 1e-3, "adversarial": 0.1}
RATES = {"tokenizer": 1e-3, "critic": 1e-3, "network": 1e-3}
MODEL = {
    "kind": "conv_autoencoder",
    "width": 8,
    "multipliers": [1, 2, 2],
    "blocks": 1,
    "groups": 4,
    "middle_attention": False,
    "bottleneck": {"kind": "gaussian", "dim": DIM},
}
SIZES = {"depth": 3, "width": 16, "heads": 2}
TERMS = {"tokenizer": {"pixel", "kl", "adversarial", "feature_cosine"}, "critic": {"real", "fake"}}
TERMS["network"] = {"flow", "feature_cosine"}


def task_of(condition_drop: float = 0.0, classes: int = CLASSES) -> JointTraining:
    """All three players with weights that are drawn, a running scale that is not that of the codes."""
    torch.manual_seed(0)
    sizes = {name: value for name, value in MODEL.items() if name != "kind"}
    tokenizer = randomised(ConvAutoencoder(16, **sizes), 1).train()
    network = randomised(DiffusionTransformer(GRID, DIM, classes, **SIZES, condition_drop=condition_drop), 2).train()
    tap = Tap(Classifier(num_classes=3, width=8), 1)
    node = {"kind": "feature_cosine", "block": BLOCK, "head": {"layers": 2, "hidden": 16}}
    losses = {"feature_cosine": build("losses", node, extractor=tap, dim=SIZES["width"], grid=GRID)}
    generation = Generation(network, FlowMatching(), {"flow": 1.0, "feature_cosine": 0.5}, losses)
    adversary = Adversary({"kind": "patch", "width": 8, "layers": 1}, "least_squares", adaptive=False)
    phase = Phase(Loop(1, RATES), WEIGHTS, {"pixel": {"kind": "pixel"}}, adversary=adversary)
    norm = RunningNorm(torch.tensor([0.5, -0.2, 0.1]), torch.tensor([1.5, 0.7, 0.9]))
    alignment = {"feature_cosine": ALIGNMENT}
    return JointTraining(tokenizer, phase, {"pixel": Pixel()}, Patch(8, 1), generation, norm, alignment)


def images(count: int = 4) -> ImageBatch:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1
    return ImageBatch(pixels, Condition(torch.randint(CLASSES, (count,), generator=generator)))


def draws(step: int = 0) -> StepDraws:
    return StepDraws(0, step, slice(0, 4), 4)


def turns(task: JointTraining) -> Iterator[tuple[str, dict[str, Tensor]]]:
    return task.turns(images(), draws(), 0)


def moved(task: JointTraining, term: Tensor) -> set[str]:
    """Which players' parts have a gradient of a term that is not zero."""
    tokenizer, network = task.players["tokenizer"], task.players["network"].player
    parts = {
        "encoder": [*tokenizer.encoder.parameters(), *tokenizer.quant_conv.parameters()],
        "decoder": [*tokenizer.decoder.parameters(), *tokenizer.post_quant_conv.parameters()],
        "critic": list(task.players["critic"].parameters()),
        "first blocks": list(network.model.blocks[:BLOCK].parameters()),
        "last blocks": [*network.model.blocks[BLOCK:].parameters(), *network.model.head.parameters()],
        "head": list(network.heads.parameters()),
    }
    parameters = [parameter for part in parts.values() for parameter in part]
    for parameter in parameters:
        parameter.grad = None
    if term.requires_grad:
        term.backward(retain_graph=True)
    return {name for name, part in parts.items() if any(p.grad is not None and p.grad.any() for p in part)}


def test_every_term_moves_what_it_should_and_nothing_else():
    task = task_of()
    found = {player: {name: moved(task, term) for name, term in terms.items()} for player, terms in turns(task)}
    assert {player: set(terms) for player, terms in found.items()} == TERMS
    tokenizer = found["tokenizer"]
    assert tokenizer["feature_cosine"] == {"encoder"}, "by way of the generator, which stays as it is"
    assert tokenizer["kl"] == {"encoder"}
    # what the pixel terms and the critic say of the image goes back in one pass, that of the first of them
    assert tokenizer["pixel"] == {"encoder", "decoder"} and not tokenizer["adversarial"]
    assert found["critic"] == {"real": {"critic"}, "fake": {"critic"}}
    assert found["network"]["flow"] == {"first blocks", "last blocks"}, "never the tokenizer"
    assert found["network"]["feature_cosine"] == {"first blocks", "head"}


def test_no_gradient_of_one_turn_is_left_in_another_s_player():
    task = task_of()
    for player, terms in turns(task):
        for other in task.players.values():
            other.zero_grad()
        sum(terms.values()).backward()
        for name, other in task.players.items():
            grads = [parameter.grad for parameter in other.parameters() if parameter.grad is not None]
            assert bool(grads) == (name == player), f"{name} in the turn of {player}"
            assert all(parameter.requires_grad for parameter in other.parameters())


def asked_in(task: JointTraining) -> list[dict[str, Any]]:
    """What the network is asked in the tokenizer's turn and in its own, and the mode that it is in."""
    network, seen = task.generation.network, []

    def note(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        state, time, condition = arguments
        labels = None if condition is None else condition.labels
        seen.append({"state": state.detach(), "time": time, "labels": labels, "training": network.training})

    task.players["network"].register_forward_pre_hook(note)
    norm = task.norm
    for player, _ in turns(task):
        if player == "tokenizer":
            task.before = norm.mean.clone(), norm.variance.clone()
    return seen


def test_both_turns_have_the_same_times_and_noise():
    task = task_of(condition_drop=1.0)
    first, second = asked_in(task)
    assert torch.equal(first["time"], second["time"]) and len(set(first["time"].tolist())) == 4
    u, z = first["time"][:, None, None], task.z.detach()
    running = (z - torch.tensor([0.5, -0.2, 0.1])) / (torch.tensor([1.5, 0.7, 0.9]).square() + 1e-4).sqrt()
    own = F.batch_norm(z.mT, None, None, training=True, eps=1e-4).mT
    noise = (first["state"] - (1 - u) * running) / u
    torch.testing.assert_close(second["state"], (1 - u) * own + u * noise, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(noise, draws().normal("noise", (16, DIM)), atol=1e-4, rtol=1e-4)
    assert (first["training"], second["training"]) == (False, True)
    assert torch.equal(first["labels"], images().condition.labels), "evaluation drops no class"
    assert set(second["labels"].tolist()) == {CLASSES}


def test_the_tokenizer_s_turn_leaves_the_running_scale_and_the_network_s_moves_it():
    task = task_of()
    asked_in(task)
    assert torch.equal(task.before[0], torch.tensor([0.5, -0.2, 0.1]))
    z = task.z.detach()
    torch.testing.assert_close(task.norm.mean, 0.9 * task.before[0] + 0.1 * z.mean((0, 1)))
    torch.testing.assert_close(task.norm.variance, 0.9 * task.before[1] + 0.1 * z.flatten(0, 1).var(0))


def test_blocks_behind_the_aligned_one_run_in_the_network_s_own_turn_alone():
    task, ran = task_of(), []
    for number, block in enumerate(task.generation.network.blocks, start=1):
        block.register_forward_hook(lambda *of, number=number: ran.append(number))
    ran_by = {player: ran[:] for player, _ in turns(task)}
    first, whole = list(range(1, BLOCK + 1)), list(range(1, SIZES["depth"] + 1))
    assert len(first) < len(whole) and (ran_by["tokenizer"], ran_by["network"]) == (first, first + whole)


def test_a_generator_without_classes_is_asked_for_none():
    assert [asked["labels"] for asked in asked_in(task_of(classes=0))] == [None, None]


def test_the_alignment_of_the_tokenizer_is_the_weighted_term_at_the_running_scale():
    task = task_of()
    _, terms = next(turns(task))
    (slope,) = torch.autograd.grad(terms["feature_cosine"], task.z, retain_graph=True)
    z = task.z.detach().clone().requires_grad_()
    tapped, loss = task.generation.players["network"].player, task.generation.losses["feature_cosine"]
    time, noise = draws().uniform("time"), draws().normal("noise", (16, DIM))
    u = time[:, None, None]
    scaled = (z - torch.tensor([0.5, -0.2, 0.1])) / (torch.tensor([1.5, 0.7, 0.9]).square() + 1e-4).sqrt()
    _, made = tapped((1 - u) * scaled + u * noise, time, images().condition)
    aims = loss.tap(images().images, GRID)
    value = ALIGNMENT * (1 - F.cosine_similarity(made["feature_cosine"], aims, dim=-1)).mean()
    torch.testing.assert_close(terms["feature_cosine"], value)
    torch.testing.assert_close(slope, torch.autograd.grad(value, z)[0])


def test_the_tokenizer_alone_learns_what_a_fixed_generator_aligns():
    task = task_of()
    optimizer = torch.optim.Adam(task.players["tokenizer"].parameters(), 3e-3)
    values = []
    for _ in range(25):
        _, terms = next(turns(task))
        values.append(float(terms["feature_cosine"].detach()))
        optimizer.zero_grad()
        terms["feature_cosine"].backward()
        optimizer.step()
    assert values[-1] < 0.97 * values[0]


@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_the_running_norm_is_torch_s_batch_norm_without_an_affine_map(momentum):
    mean, std = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([0.5, 1.0, 3.0])
    ours, theirs = RunningNorm(mean, std, 1e-4, momentum), nn.BatchNorm1d(3, 1e-4, momentum, affine=False)
    theirs.running_mean.copy_(mean), theirs.running_var.copy_(std**2)
    for seed in range(4):
        z = 2 * torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(seed)) + 1
        torch.testing.assert_close(ours.train()(z), theirs.train()(z.mT).mT)
        torch.testing.assert_close(ours.mean, theirs.running_mean)
        torch.testing.assert_close(ours.variance, theirs.running_var)
        z.requires_grad_()
        torch.testing.assert_close(ours.eval()(z), theirs.eval()(z.mT).mT)
        torch.testing.assert_close(ours(z) * ours.std + ours.mean, z)
        slopes = [torch.autograd.grad(norm.square().sum(), z)[0] for norm in (ours(z), theirs(z.mT).mT)]
        torch.testing.assert_close(*slopes)
        assert not ours.train()(z).requires_grad
        ours.mean.copy_(theirs.running_mean), ours.variance.copy_(theirs.running_var)  # what the last line has moved


def test_the_scale_of_channels_is_that_of_all_places_together():
    z = torch.randn(500, 4, 3) * torch.rand(4, 3) + torch.randn(4, 3)
    mean, std = of_channels(z.mean(0), z.std(0, unbiased=False))
    torch.testing.assert_close(mean, z.mean((0, 1)))
    torch.testing.assert_close(std, z.flatten(0, 1).std(0, unbiased=False))
    assert all(torch.equal(of_channels(mean, std)[i], (mean, std)[i]) for i in range(2))


class Pictures(Batched):
    """Forty labelled images, as a training reads them."""

    def __init__(self):
        self.all = images(40)

    def __len__(self) -> int:
        return 40

    def batch(self, indices: Tensor, seeds: Tensor) -> ImageBatch:
        return ImageBatch(self.all.images[indices], Condition(self.all.condition.labels[indices]))


def states(players: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Every weight and buffer by name."""
    return {f"{name}.{key}": value for name, player in players.items() for key, value in player.state_dict().items()}


def fit(folder: Path, steps: int = 6, task: JointTraining | None = None, **changes: Any) -> dict[str, nn.Module]:
    """The averages of all players after a training."""
    after_step = changes.pop("after_step", None)
    loop = Loop(**({"steps": steps, "lr": RATES, "batch": 4, "save_every": 2, "ema": 0.9} | changes))
    run = TrainingRun(loop, folder, 5, Accelerator(cpu=True), after_step=after_step)
    return train(task or task_of(condition_drop=0.5), Pictures(), run)


def test_a_resumed_training_is_the_same_to_the_bit(tmp_path):
    fit(tmp_path / "resumed", after_step=lambda step, _: step == 3)
    resumed, whole = states(fit(tmp_path / "resumed")), states(fit(tmp_path / "whole"))
    assert {"network.norm.mean", "critic.main.0.weight"} < set(whole)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_every_player_and_the_running_scale_have_their_average(tmp_path):
    task, kept = task_of(), {}

    def follow(step: int, _: dict[str, nn.Module]) -> bool:
        for name, player in task.players.items():
            kept[name].update(player, step)
        return False

    kept |= {name: Average(player, 0.9) for name, player in task.players.items()}
    found = states(fit(tmp_path, 3, task, after_step=follow))
    expected = states({name: average.module for name, average in kept.items()})
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    assert not torch.equal(found["network.norm.mean"], task.norm.mean)


def test_two_processes_train_all_players_as_one(tmp_path):
    script = "import sys; sys.path.insert(0, sys.argv[1]); import test_joint_training as t; t.fit_and_save(sys.argv[2])"
    (tmp_path / "start.py").write_text(script)
    for process in start_two(tmp_path / "start.py", Path(__file__).parent, tmp_path, log=tmp_path / "log"):
        process.finish()
    two, one = torch.load(tmp_path / "states.pt", weights_only=True), fit(tmp_path / "one", 3)
    for name, players in ((name, {name: player}) for name, player in one.items()):
        start, alone = (together(states(which)) for which in ({name: task_of().players[name]}, players))
        apart = together({key: two[key] for key in states(players)}) - alone
        # AdamW turns what a gradient of zero (that of a key's bias) has of rounding into steps of full length
        assert apart.norm() < 0.01 * (alone - start).norm(), name
    torch.testing.assert_close(two["network.norm.mean"], one["network"].norm.mean)
    torch.testing.assert_close(two["network.norm.variance"], one["network"].norm.variance)


def together(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values.values() if value.is_floating_point()])


def fit_and_save(folder: str) -> None:
    """A training as one of two processes."""
    torch.set_num_threads(1)
    averages = fit(Path(folder) / "two", 3)
    if Accelerator(cpu=True).is_main_process:
        torch.save(states(averages), Path(folder) / "states.pt")


PART = {
    "phase": {
        "losses": {"pixel": {"kind": "pixel"}},
        "weights": WEIGHTS,
        "adversary": {"critic": {"kind": "patch", "width": 8, "layers": 1}, "adaptive": False},
        "loop": {"steps": 3, "batch": 16, "lr": RATES, "ema": 0.5, "preview_every": 3},
    },
    "alignment": {"feature_cosine": ALIGNMENT},
}
LOSSES = {"alignment": {"kind": "feature_cosine", "teacher": "classifier", "block": 2, "head": {"hidden": 16}}}


def recipe_of(**sections: Any) -> Recipe:
    generator = {
        "network": SIZES | {"kind": "diffusion_transformer"},
        "objective": {"kind": "flow_matching"},
        "losses": LOSSES,
        "weights": {"flow": 1.0, "feature_cosine": 0.5},
        "loop": {"steps": 0, "lr": {"network": 1e-3}},
        "start": "joint",
    }
    values = {
        "name": "tiny",
        "data": {"source": {"kind": "digits"}, "size": 16},
        "tokenizer": {"model": MODEL, "start": "anywhere"},
        "joint": PART,
        "generator": generator,
        "latents": {"batch": 256, "precision": "fp32"},
        "sample": {"steps": 2},
    }
    return structure(Recipe, values | sections)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Recipe, Workspace]:
    """A run up to its jointly trained tokenizer, and the generator that came of it."""
    recipe, work = recipe_of(), Workspace(tmp_path_factory.mktemp("joint"), Accelerator(cpu=True))
    check_recipe(recipe)
    for name in ("tokenizer", "joint", "latents", "generator"):
        (work.root / name).mkdir()
        (work.root / name / NOTE).write_text("{}")
    randomised(build_tokenizer(recipe), 1).save_pretrained(work.root / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stand_in, "train_stand_in", partial(stand_in.train_stand_in, steps=4))
        for stage in (train_jointly, encode_dataset, train_generator):
            stage.run(recipe, work, work.root / stage.WRITES)
    return recipe, work


def weights_in(folder: Path) -> dict[str, Tensor]:
    return ConvAutoencoder.from_pretrained(folder).state_dict()


def test_later_stages_read_the_tokenizer_and_the_scale_that_the_generator_knows(run):
    recipe, work = run
    before, joint = weights_in(work.root / "tokenizer"), weights_in(work.root / "joint")
    assert not torch.equal(before["encoder.conv_in.weight"], joint["encoder.conv_in.weight"])
    encoded = weights_in(work.root / "latents" / "tokenizer")
    assert all(torch.equal(encoded[name], value) for name, value in joint.items())
    plan, model = EncodingPlan(recipe.latents, 0, "fp32"), ConvAutoencoder.from_pretrained(work.root / "tokenizer")
    measured = measure(model, Images(recipe.data, "train"), plan, work.accelerator)
    assert not torch.equal(joint["mean"], measured[0])
    torch.testing.assert_close(joint["mean"], measured[0], atol=0.5, rtol=0.5)
    torch.testing.assert_close(joint["std"], measured[1], atol=0.5, rtol=0.5)
    assert (work.root / "joint" / "critic" / "config.json").is_file()
    (preview,) = read_previews(work.root / "joint")
    assert preview.terms.keys() == {"kl", "pixel", "flow"} and preview.near_copies is not None
    assert (work.root / "preview" / "joint" / "latest.png").is_file()
    log = [json.loads(line) for line in (work.root / "joint" / "metrics.jsonl").read_text().splitlines()]
    assert {"tokenizer/feature_cosine", "network/feature_cosine", "network/flow", "critic/real"} < set(log[-1])


def test_the_generator_is_the_joint_one_and_goes_on_with_its_head(run, tmp_path):
    recipe, work = run
    joint, taken = (
        DiffusionTransformer.from_pretrained(folder / "network").state_dict()
        for folder in (work.root / "joint" / "generator", work.root / "generator")
    )
    assert all(torch.equal(taken[name], value) for name, value in joint.items())
    still = {"steps": 1, "batch": 16, "lr": {"network": 0.0}, "ema": 0.0}
    part = replace(recipe.generator, loop=structure(Loop, still))
    shutil.copytree(work.root / "joint" / "stand_in", tmp_path / "stand_in")
    train_generator.run(replace(recipe, generator=part), work, tmp_path)
    folders = work.root / "joint" / "generator", tmp_path
    heads = [(folder / "heads" / "feature_cosine.safetensors").read_bytes() for folder in folders]
    assert heads[0] == heads[1]


def test_the_last_weights_are_kept_of_a_player_without_an_average(run, tmp_path):
    _, work = run
    shutil.copytree(work.root / "joint" / "stand_in", tmp_path / "stand_in")
    phase = PART["phase"] | {"loop": PART["phase"]["loop"] | {"ema": {"network": 0.5}}}
    train_jointly.run(recipe_of(joint=PART | {"phase": phase}), work, tmp_path)
    last, average = weights_in(tmp_path), weights_in(work.root / "joint")
    assert not torch.equal(last["encoder.conv_in.weight"], average["encoder.conv_in.weight"])
    assert torch.equal(last["mean"], average["mean"]), "the scale is of the generator, which is an average"


def test_the_critic_goes_on_from_a_folder_or_the_tokenizer_s_own(run, tmp_path):
    recipe, source = run[0], tmp_path / "tokenizer"
    own = source / "phases" / "main" / "critic"
    for layers, folder in ((1, tmp_path / "stated"), (2, tmp_path / "other"), (1, own)):
        randomised(Patch(8, layers), len(folder.name)).save_pretrained(folder)
    before = {folder: Patch.from_pretrained(folder).state_dict() for folder in (tmp_path / "stated", own)}
    phases = {"main": PART["phase"] | {"loop": {"steps": 1, "lr": {"tokenizer": 0.0, "critic": 0.0}}}}
    recipe = replace(recipe, tokenizer=structure(TokenizerTraining, {"model": MODEL, "phases": phases}))
    for stated, folder in ((None, own), (str(tmp_path / "stated"), tmp_path / "stated")):
        part = replace(recipe.joint, critic=stated)
        found = train_jointly.start_critic(replace(recipe, joint=part), Patch(8, 1), source).state_dict()
        assert all(torch.equal(found[name], value) for name, value in before[folder].items())
    with pytest.raises(ValueError, match="joint.critic"):
        part = replace(recipe.joint, critic=str(tmp_path / "other"))
        train_jointly.start_critic(replace(recipe, joint=part), Patch(8, 1), source)


def test_without_the_section_tokenizer_and_critic_pass_through(run, tmp_path):
    recipe, work = run
    contested = {"main": PART["phase"] | {"loop": {"steps": 1, "lr": {"tokenizer": 0.0, "critic": 0.0}}}}
    tokenizer = structure(TokenizerTraining, {"model": MODEL, "phases": contested})
    (tmp_path / "tokenizer" / "phases" / "main").mkdir(parents=True)
    (tmp_path / "tokenizer" / NOTE).write_text("{}")
    randomised(build_tokenizer(recipe), 1).save_pretrained(tmp_path / "tokenizer")
    Patch(8, 1).save_pretrained(tmp_path / "tokenizer" / "phases" / "main" / "critic")
    (tmp_path / "joint").mkdir()
    through = replace(recipe, joint=None, tokenizer=tokenizer)
    train_jointly.run(through, Workspace(tmp_path, work.accelerator), tmp_path / "joint")
    before, after = weights_in(tmp_path / "tokenizer"), weights_in(tmp_path / "joint")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert sorted(path.name for path in (tmp_path / "joint").iterdir()) == [
        "config.json",
        "critic",
        "diffusion_pytorch_model.tessera.safetensors",
    ]
    assert train_jointly.WRITES in posttrain_decoder.READS and train_jointly.WRITES in encode_dataset.READS


def test_what_makes_the_joint_training_stale():
    def hashed(recipe: Recipe) -> str:
        return fingerprint(train_jointly.uses(recipe))

    recipe = recipe_of()
    part = recipe.generator
    longer = replace(recipe, generator=replace(part, loop=replace(part.loop, steps=9)))
    other = replace(recipe, generator=replace(part, weights={"flow": 1.0, "feature_cosine": 0.1}))
    assert hashed(longer) == hashed(recipe) != hashed(other)
    assert hashed(recipe) != hashed(recipe_of(joint=PART | {"alignment": {"feature_cosine": 1.0}}))
    assert hashed(replace(longer, joint=None)) == hashed(replace(other, joint=None))


AGAIN = "joint.phase.losses.more={kind: feature_cosine, teacher: classifier}"
MISTAKES = [
    (
        ["generator.losses=null", "generator.weights.feature_cosine=null"],
        "joint.alignment: the tokenizer is trained by generator.losses, and there are none",
    ),
    (["joint.alignment={feature_cosin: 1}"], "joint.alignment.feature_cosin: there is no term of generator.losses"),
    (["joint.alignment=null"], "joint.alignment.feature_cosine is missing"),
    (["joint.phase.train=decoder"], "joint.phase.train is decoder, which leaves codes"),
    (["joint.phase.loop.lr.network=null"], "joint.phase.loop.lr.network is missing"),
    (["joint.phase.weights.kl=null"], "joint.phase.weights.kl is missing"),
    (["joint.momentum=0"], "joint.momentum is 0; give a fraction, above 0"),
    (["joint.epsilon=0"], "joint.epsilon is 0; give a number above 0"),
    (["joint=null"], "generator.start is joint, but no network is trained jointly"),
    (
        [AGAIN, "joint.phase.weights.feature_cosine=1"],
        "joint.phase.losses and generator.losses both give 'feature_cosine'",
    ),
]


@pytest.mark.parametrize("settings, words", MISTAKES)
def test_what_cannot_be_trained_together_is_refused_in_one_line(settings, words):
    with pytest.raises(ValueError, match=words) as error:
        check_recipe(load("digits_repae", settings))
    assert "\n" not in str(error.value)
