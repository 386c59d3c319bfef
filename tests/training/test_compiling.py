"""Compiled training: no break in any block, no compilation after the first sizes, and the gradients of uncompiled."""

import copy
from collections.abc import Iterable

import pytest
import torch
from contracts import as_views, derived_of, dropout_of, examples, images_of, network_of, request_of, size_for, total
from torch import Tensor, nn
from torch._dynamo.utils import counters

from pipeline.components import Arguments, build
from pipeline.critics.frozen_features import FrozenFeatures
from pipeline.critics.patch import Patch
from pipeline.draws import StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.pixel import Pixel
from pipeline.recipes.adversary import Adversary, Augmentation
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.teachers.classifier import Classifier
from pipeline.tokenizers.vit_autoencoder import VitAutoencoder
from pipeline.training.compiling import compile_in_place
from pipeline.training.reconstruction import Reconstruction

BATCHES = (3, 3, 2, 4)  # of the steps; no step after the third one compiles
FAST = {  # examples of which the others, which differ by switches, are tested where there is time
    *("diffusion_class_token", "causal_modulated", "bidirectional_codebooks"),
    *("digits_titok_vq", "digits_vit_vq", "patch"),
}
WHOLE = {"fullgraph": True, "backend": "eager"}  # a break in a block is an error; no compiler of C++ is needed


def by_speed(names: Iterable[str]) -> list:
    return [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in names]


@pytest.fixture(autouse=True)
def forget():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def check_compiled(model: nn.Module, run) -> None:
    """`run(model, batch, step)` is a loss; compiled blocks give the same, and the same gradients."""
    compiled, graphs = copy.deepcopy(model), []
    compile_in_place(compiled, **WHOLE)
    for step, batch in enumerate(BATCHES):
        losses = []
        for each in (model, compiled):
            each.zero_grad()
            losses.append(run(each, batch, step))
            losses[-1].backward()
        torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-4)
        for (name, ours), theirs in zip(compiled.named_parameters(), model.parameters()):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3, msg=name)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0, "the second step of a size compiles again"
    assert len(set(graphs[2:])) == 1, f"graphs after each step: {graphs}"
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", by_speed(examples("networks")))
def test_networks(name):
    def run(network: nn.Module, batch: int, step: int) -> Tensor:
        dropout = {argument: StepDraws(0, step, slice(0, batch), batch) for argument in dropout_of(network)}
        return network(**request_of(network, batch), **dropout).square().mean()

    check_compiled(network_of(examples("networks")[name]).train(), run)


def trained_tokenizers() -> list[str]:
    """Examples that are trained, and not used as they are."""
    return [name for name, node in examples("tokenizers").items() if node["kind"] != "pretrained"]


@pytest.mark.parametrize("name", by_speed(trained_tokenizers()))
def test_tokenizers(name):
    node = examples("tokenizers")[name]
    size = size_for(node)

    def run(tokenizer: nn.Module, batch: int, step: int) -> Tensor:
        return total(tokenizer, images_of(size, batch), StepDraws(0, step, slice(0, batch), batch))

    check_compiled(build("tokenizers", node, **derived_of(node, size)).train(), run)


@pytest.mark.parametrize("name", by_speed(examples("critics")))
def test_critics(name):
    critic = build("critics", examples("critics")[name])
    size = max(32, type(critic).smallest(Arguments.from_config(critic)))

    def run(critic: nn.Module, batch: int, step: int) -> Tensor:
        return sum(view.square().mean() for view in as_views(critic(images_of(size, batch))))

    check_compiled(critic.train(), run)


def task_of(critic: nn.Module, adversary: Adversary) -> Reconstruction:
    """A phase with everything that goes back through the decoder by itself: adaptive and balanced weights."""
    torch.manual_seed(1)
    bottleneck = {"kind": "gaussian", "dim": 4}
    arguments = {"width": 16, "depth": 2, "heads": 2, "patch_size": 4, "token_drop": [0.0, 0.5]}
    tokenizer = VitAutoencoder(16, bottleneck, **arguments)
    weights = {"pixel": 1.0, "kl": 1e-3, "adversarial": 0.5}
    balance = {"kl": "encoder.projection.weight"}
    losses = {"pixel": {"kind": "pixel"}}
    phase = Phase(Loop(1, {"tokenizer": 1e-3, "critic": 1e-2}), weights, losses, balance=balance, adversary=adversary)
    return Reconstruction(tokenizer, phase, {"pixel": Pixel("l2")}, critic)


def critic_of(kind: str) -> nn.Module:
    torch.manual_seed(2)
    if kind == "patch":
        return Patch(8, 1, norm="batch")
    teacher = Classifier(num_classes=3, width=8, dim=4).requires_grad_(False).eval()
    return FrozenFeatures(list(teacher.widths), "classifier", norm="batch", virtual_batch=1).judge_by(teacher)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["patch", pytest.param("frozen_features", marks=pytest.mark.slow)])
def test_the_turns_of_a_tokenizer_and_its_critic(kind, backend):
    adversary = Adversary({"kind": kind}, augmentation=Augmentation(0.7), lecam=0.1, rebuild=True)
    plain, compiled = (task_of(critic_of(kind), adversary) for _ in range(2))
    for player in compiled.players.values():
        compile_in_place(player, fullgraph=True, backend=backend)
    graphs = []
    for step in range(5):
        given = StepDraws(0, step, slice(0, 4), 4)
        for task in (plain, compiled):
            for name, terms in task.turns(ImageBatch(images_of(16, 4)), given, step):
                sum(terms.values()).backward()
                with torch.no_grad():
                    for parameter in task.players[name].parameters():
                        if parameter.grad is not None:
                            parameter -= 1e-2 * parameter.grad
        for name in plain.players:
            for theirs, ours in zip(plain.players[name].parameters(), compiled.players[name].parameters()):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[2] == graphs[-1], f"graphs after each step: {graphs}"
    assert not counters["graph_break"]
