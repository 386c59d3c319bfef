"""Joint training with soft codes: what a mixture is, how it cools, which term moves what, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from support.tiny_pipeline import randomised
from torch import Tensor, nn

from pipeline.checks.recipe import check_recipe
from pipeline.code import Condition
from pipeline.draws import StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.pixel import Pixel
from pipeline.networks.causal_transformer import CausalTransformer
from pipeline.nn.soft_codes import mix_codes
from pipeline.objectives.next_token import NextToken
from pipeline.recipes.joint_training import SoftCodes
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import load
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.training.generation import Generation
from pipeline.training.soft_codes import SoftCodeTraining

VOCAB, DIM, CLASSES = 8, 3, 4
MODEL = {"width": 8, "multipliers": [1, 2, 2], "blocks": 1, "groups": 4, "middle_attention": False}
SOFT = SoftCodes(first=1.0, last=0.1, steps=3)


def test_a_mixture_counts_distances_in_those_to_the_nearest_codes_and_cools_to_one_code():
    generator = torch.Generator().manual_seed(1)
    latents, rows = torch.randn(2, 5, DIM, generator=generator), torch.randn(VOCAB, DIM, generator=generator)
    apart = torch.cdist(latents.flatten(0, 1), rows).square()
    scale = apart.min(dim=1).values.mean()
    expected = (-apart / (0.5 * scale)).softmax(dim=1).view(2, 5, VOCAB)
    torch.testing.assert_close(mix_codes(latents, rows, 0.5), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mix_codes(7 * latents, 7 * rows, 0.5), expected, atol=1e-5, rtol=1e-4)
    nearest = F.one_hot(apart.argmin(dim=1), VOCAB).view(2, 5, VOCAB).float()
    torch.testing.assert_close(mix_codes(latents, rows, 1e-4), nearest)


def test_the_temperature_falls_geometrically_and_then_ids_are_read():
    assert [SOFT.temperature(step) for step in range(5)] == pytest.approx([1.0, 0.1**0.5, 0.1, 0.0, 0.0])
    assert SoftCodes(first=0.0).temperature(0) == 0.0


@pytest.mark.parametrize("head_depth", [0, 1])
def test_a_mixture_of_one_code_is_read_as_its_id(head_depth):
    network = randomised(CausalTransformer([2, 3], VOCAB, CLASSES, 2, 16, 2, head_depth=head_depth), 3)
    ids = torch.randint(VOCAB, (3, 6), generator=torch.Generator().manual_seed(2))
    one_hot = F.one_hot(ids, VOCAB).float()[:, :, None]
    torch.testing.assert_close(network(one_hot), network(ids))


def task_of(soft: SoftCodes = SOFT, alignment: float = 0.5) -> SoftCodeTraining:
    torch.manual_seed(0)
    bottleneck = {"kind": "vector_quantize", "dim": DIM, "vocab": VOCAB, "unit_norm": False}
    tokenizer = randomised(ConvAutoencoder(16, **MODEL, bottleneck=bottleneck), 1).train()
    sizes = {"depth": 2, "width": 16, "heads": 2, "condition_drop": 0.5}
    network = randomised(CausalTransformer([4, 4], VOCAB, CLASSES, **sizes), 2).train()
    generation = Generation(network, NextToken(), {"next_token": 2.0})
    weights = {"pixel": 1.0, "vq": 1.0, "commit": 0.25}
    phase = Phase(Loop(5, {"tokenizer": 1e-3, "network": 1e-3}), weights, {"pixel": {"kind": "pixel"}})
    return SoftCodeTraining(tokenizer, phase, {"pixel": Pixel()}, None, generation, soft, {"next_token": alignment})


def batch() -> ImageBatch:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(CLASSES, (4,), generator=generator)
    return ImageBatch(torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1, Condition(labels))


def turns(task: SoftCodeTraining, step: int) -> dict[str, dict[str, Tensor]]:
    return dict(task.turns(batch(), StepDraws(0, step, slice(0, 4), 4), step))


def moved(task: SoftCodeTraining, term: Tensor) -> set[str]:
    """Which parts have a gradient of a term that is not zero."""
    tokenizer, network = task.players["tokenizer"], task.players["network"]
    parts: dict[str, nn.Module] = {"encoder": tokenizer.encoder, "codes": tokenizer.neck, "decoder": tokenizer.decoder}
    for part in (tokenizer, network):
        part.zero_grad()
    term.backward(retain_graph=True)
    found = {name for name, part in (parts | {"network": network}).items() if has_gradient(part)}
    return found


def has_gradient(module: nn.Module) -> bool:
    return any(p.grad is not None and p.grad.any() for p in module.parameters())


def test_while_codes_are_soft_the_generator_s_loss_moves_encoder_and_codes_and_the_network_in_its_own_turn():
    task = task_of()
    given = turns(task, step=0)
    assert given.keys() == {"tokenizer", "network"}
    assert given["tokenizer"].keys() == {"pixel", "vq", "commit", "next_token"}
    assert moved(task, given["tokenizer"]["next_token"]) == {"encoder", "codes"}
    assert moved(task, given["network"]["next_token"]) == {"network"}
    torch.testing.assert_close(given["tokenizer"]["next_token"] * 2.0, given["network"]["next_token"] * 0.5)
    assert task.mixture.shape == (4, 16, 1, VOCAB)


def test_ids_are_read_after_the_last_soft_step_and_nothing_of_the_generator_reaches_the_tokenizer():
    task = task_of()
    given = turns(task, step=SOFT.steps)
    assert "next_token" not in given["tokenizer"] and task.mixture is None
    network, ids = task.players["network"], task.ids
    draws = StepDraws(0, SOFT.steps, slice(0, 4), 4)
    from_ids = task.generation.objective_terms(network, task.codes(batch().condition), draws)["next_token"]
    torch.testing.assert_close(given["network"]["next_token"], 2.0 * from_ids)
    hard = turns(task_of(SoftCodes(first=0.0)), step=0)
    assert "next_token" not in hard["tokenizer"] and ids.shape == (4, 16)
    soft = turns(task_of(), step=0)["network"]["next_token"]
    assert abs(soft.item() - hard["network"]["next_token"].item()) > 1e-4


def test_held_out_losses_are_of_ids():
    task = task_of()
    averages = {name: player.eval() for name, player in task.players.items()}
    terms = task.held_out_terms(averages, batch(), StepDraws(0, 9, slice(0, 4), 4))
    assert terms.keys() == {"pixel", "vq", "commit", "next_token"}
    assert task.trained(averages) == (averages["tokenizer"], averages["network"])


MISTAKES = [
    (["generator.network={kind: bidirectional_transformer, depth: 2, width: 32, heads: 2}",
      "generator.objective={kind: masked_token}", "generator.weights={next_token: null, masked_token: 1.0}"],
     "joint.soft: a BidirectionalTransformer reads no mixtures of codes; take causal_transformer"),
    (["tokenizer.model.bottleneck={kind: finite_scalar, levels: [5, 5]}", "joint.phase.weights.commit=null",
      "tokenizer.phases.main.weights.commit=null"], "joint.soft mixes the codes of a codebook, and a FiniteScalar"),
    (["joint.alignment={pixel: 1}"], "joint.alignment.pixel: there is no term of the objective"),
    (["joint.soft.last=0"], "joint.soft.last is 0"),
]  # fmt: skip


@pytest.mark.parametrize("settings, words", MISTAKES)
def test_what_cannot_read_soft_codes_is_refused_in_one_line(settings, words):
    check_recipe(load("digits_joint_soft_codes"))
    with pytest.raises(ValueError, match=words) as error:
        check_recipe(load("digits_joint_soft_codes", settings))
    assert "\n" not in str(error.value)
