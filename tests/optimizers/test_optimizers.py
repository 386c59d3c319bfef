"""The optimisers: their rules by hand, what they decay, exact resumption of each, and what muon takes for a matrix."""

import math
import sys
import types

import pytest
import torch
from support.loop_task import Denoise, fit, weights
from torch import nn

from pipeline.components import build, kinds
from pipeline.optimizers.base import Grouping, groups_of, trained
from pipeline.optimizers.muon import Orthogonal, hidden_matrices
from pipeline.validation import SettingError


class Blocks(nn.Module):
    """An embedding, two blocks, a list of heads, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.Conv1d(9, 6, 1)) for _ in range(2))
        self.heads = nn.ModuleList([nn.Linear(6, 3)])
        self.places = nn.Parameter(torch.ones(4, 6))


class Stack(nn.Module):
    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.enter = nn.Linear(6, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(2))
        self.leave = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x)


class Stacked(Denoise):
    """The task of the loop's tests with players that have blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.players = {"maker": Stack(8, 6), "judge": Stack(8, 1)}


def one_step(node: dict, weight: torch.Tensor, gradient: torch.Tensor, rate: float, decay: float) -> torch.Tensor:
    player = Blocks()
    parameter = player.blocks[0][0].weight
    parameter.data = weight.clone()
    optimizer = build("optimizers", node).build(player, Grouping(decay))
    for group in optimizer.param_groups:
        group["lr"] = rate
    parameter.grad = gradient.clone()
    optimizer.step()
    return parameter.data


def test_adam_adds_the_decay_to_the_gradient_and_adamw_to_the_step():
    torch.manual_seed(0)
    weight, gradient = torch.randn(9, 6), torch.randn(9, 6)
    free = weight - 0.1 * gradient.sign()  # the first step of Adam
    torch.testing.assert_close(one_step({"kind": "adamw"}, weight, gradient, 0.1, 0.5), free - 0.05 * weight)
    coupled = weight - 0.1 * (gradient + 0.5 * weight).sign()
    torch.testing.assert_close(one_step({"kind": "adam"}, weight, gradient, 0.1, 0.5), coupled)
    bare = [one_step({"kind": kind}, weight, gradient, 0.1, 0.0) for kind in ("adam", "adamw")]
    assert torch.equal(*bare)


def test_muon_brings_all_singular_values_to_one_size_and_steps_as_far_as_adamw():
    torch.manual_seed(0)
    weight, gradient = torch.randn(9, 6), torch.randn(9, 6) @ torch.diag(torch.logspace(-1, 1, 6))
    step = weight - one_step({"kind": "muon", "iterations": 12}, weight, gradient, 0.1, 0.0)
    sizes = torch.linalg.svdvals(step) / (0.1 * 0.2 * math.sqrt(9))
    assert sizes.min() > 0.6 and sizes.max() < 1.3, sizes
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(step.flatten(), (u @ v).flatten(), dim=0) > 0.97
    square = torch.randn(64, 64)
    moved = torch.zeros(64, 64) - one_step({"kind": "muon"}, torch.zeros(64, 64), square, 1.0, 0.0)
    assert moved.square().mean().sqrt() == pytest.approx(0.2, rel=0.15), "the root mean square of AdamW's"
    shrunk = one_step({"kind": "muon"}, weight, torch.zeros(9, 6), 0.1, 0.5)
    torch.testing.assert_close(shrunk, 0.95 * weight)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 has it")
@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (8, 8)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_that_of_torch_up_to_its_half_precision(shape, nesterov):
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    reference = torch.optim.Muon(
        [theirs], lr=0.1, weight_decay=0.3, momentum=0.9, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
    )
    optimizer = Orthogonal([{"params": [ours], "weight_decay": 0.3}], 0.9, nesterov, 5)
    optimizer.param_groups[0]["lr"] = 0.1
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        optimizer.step(), reference.step()
    torch.testing.assert_close(ours.data, theirs.data, atol=6e-3, rtol=0)
    assert (ours - 1).abs().max() > 0.1


def test_muon_is_for_linear_layers_in_blocks_and_the_rest_is_adamw_s():
    player = Blocks()
    assert {id(p) for p in hidden_matrices(player)} == {id(block[0].weight) for block in player.blocks}
    optimizer = build("optimizers", {"kind": "muon", "betas": [0.8, 0.9]}).build(player, Grouping(0.1, ("embed",)))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(player.parameters()))
    matrices, others = optimizer.parts
    assert [len(g["params"]) for g in matrices.param_groups] == [2] and matrices.param_groups[0]["weight_decay"] == 0.1
    assert {g["betas"] for g in others.param_groups} == {(0.8, 0.9)}
    still = [id(p) for g in others.param_groups if not g["weight_decay"] for p in g["params"]]
    assert id(player.embed.weight) in still and id(player.places) not in still
    with pytest.raises(ValueError, match="no linear layers in repeated blocks, which muon is for; take adamw"):
        build("optimizers", {"kind": "muon"}).build(nn.Linear(3, 3), Grouping())


def test_vectors_and_names_without_decay_are_spared():
    decay = Grouping(0.3, ("embed", "heads.0"))
    groups = groups_of(trained(Blocks()), decay)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert [len(group["params"]) for group in groups] == [5, 7]


@pytest.mark.parametrize("kind", [kind for kind in kinds("optimizers") if kind != "adamw8bit"])
def test_a_training_that_resumes_gives_the_same_to_the_bit(tmp_path, kind):
    settings = {"optimizer": {"kind": kind}, "weight_decay": 0.1, "save_every": 5}
    whole = weights(fit(tmp_path / "whole", Stacked(), **settings))
    fit(tmp_path / "parts", Stacked(), **settings, steps=5)
    assert torch.equal(weights(fit(tmp_path / "parts", Stacked(), **settings)), whole)


def test_every_player_may_have_its_own(tmp_path):
    def outcome(name: str, optimizer: dict) -> dict[str, torch.Tensor]:
        players = fit(tmp_path / name, Stacked(), optimizer=optimizer, weight_decay=0.5)
        return {player: weights({player: module}) for player, module in players.items()}

    mixed = outcome("mixed", {"maker": {"kind": "adamw"}, "judge": {"kind": "adam"}})
    same = outcome("same", {"kind": "adamw"})
    assert torch.equal(mixed["maker"], same["maker"]) and not torch.equal(mixed["judge"], same["judge"])
    with pytest.raises(SettingError, match="loop.optimizer.judge is missing"):
        outcome("missing", {"maker": {"kind": "adamw"}})
    with pytest.raises(SettingError, match="loop.optimizer.judge: adam has no argument 'beta'; did you mean 'betas'"):
        outcome("wrong", {"maker": {"kind": "adamw"}, "judge": {"kind": "adam", "beta": 1}})


class Bytes(torch.optim.AdamW):
    """As bitsandbytes' optimiser keeps its state: whole numbers of steps, tables of bytes, one shared by all."""

    table = torch.arange(256.0)

    def __init__(self, groups, **settings):
        super().__init__(groups, **settings)

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"step": 0, "state1": torch.zeros_like(parameter, dtype=torch.uint8), "qmap1": self.table}
                assert isinstance(state["step"], int) and state["state1"].dtype == torch.uint8
                state["step"] += 1
                state["state1"] += (parameter.grad > 0).to(torch.uint8)
                parameter.data -= group["lr"] * state["state1"] / state["step"]

    def load_state_dict(self, state_dict):
        """As theirs does: the types stay as they were stored."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, state in state_dict["state"].items():
            self.state[parameters[index]] = dict(state)


def test_eight_bits_need_their_package_and_are_stored_exactly(tmp_path, monkeypatch):
    loop = {"optimizer": {"kind": "adamw8bit"}, "save_every": 5}
    if "bitsandbytes" not in sys.modules:
        with pytest.raises(ValueError, match="adamw8bit needs the package bitsandbytes; type `pip install"):
            fit(tmp_path / "none", Stacked(), **loop)
    package, inner = types.ModuleType("bitsandbytes"), types.ModuleType("bitsandbytes.optim")
    inner.AdamW8bit, package.__spec__ = Bytes, types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", inner)
    whole = weights(fit(tmp_path / "whole", Stacked(), **loop))
    fit(tmp_path / "parts", Stacked(), **loop, steps=5)
    assert torch.equal(weights(fit(tmp_path / "parts", Stacked(), **loop)), whole)
