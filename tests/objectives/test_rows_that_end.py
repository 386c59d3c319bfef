"""Rows of ids that end early: what is learned of them, what is made, and which generators are refused."""

import copy
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from metric_inputs import measured, tokenizer_inputs
from torch import Tensor

from pipeline.checks.recipe import check_recipe
from pipeline.code import Code, Condition, LatentSpec
from pipeline.components import build
from pipeline.draws import ImageDraws
from pipeline.metrics.perturbed_frechet import Exchange, as_perturbed
from pipeline.metrics.row_length import RowLength
from pipeline.networks.causal_transformer import CausalTransformer
from pipeline.nn.code_usage import count_by_codebook
from pipeline.nn.row_ends import before_end, through_end
from pipeline.recipes.schema import load
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.original import Original
from pipeline.samplers.request import SamplingRequest

CODES, PLACES = 9, 8
SPEC = LatentSpec((PLACES,), 4, CODES + 1, ends=True)
NEXT = build("objectives", {"kind": "next_token"})


def network(seed: int = 0) -> CausalTransformer:
    torch.manual_seed(seed)
    node = {"kind": "causal_transformer", "depth": 2, "width": 32, "heads": 2, "zero_head": False}
    made = build("networks", node, grid=[PLACES], vocab=CODES + 1, num_classes=3, ends=True).eval()
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return made


def rows(count: int = 12, seed: int = 1) -> Tensor:
    """Valid rows of one to all tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(CODES, (count, PLACES), generator=generator)
    return ids.masked_fill(torch.arange(PLACES) >= 1 + torch.arange(count)[:, None] % PLACES, CODES)


def request(model: torch.nn.Module, count: int, scale: float = 1.0, seed: int = 0) -> SamplingRequest:
    draws = ImageDraws.from_seeds(list(range(seed, seed + count)))
    return SamplingRequest(model, Condition(torch.arange(count) % 3), SPEC, draws, PLACES, Guidance(scale))


def check_valid(ids: Tensor) -> None:
    """A token first, and after the end nothing but the end."""
    assert (ids[:, 0] < CODES).all()
    assert torch.equal(ids == CODES, ~before_end(ids, CODES))


def test_what_follows_the_end_is_not_learned():
    model, ids = network(), rows()
    condition = Condition(torch.arange(12) % 3)
    logits = model(ids, condition)[:, :, 0]
    losses = F.cross_entropy(logits.mT, ids, reduction="none")
    lengths = before_end(ids, CODES).sum(dim=1)
    by_row = [losses[i, : lengths[i] + 1].sum() for i in range(12)]  # its tokens and the first end
    loss = NEXT.loss(model, Code(ids=ids), condition)["next_token"]
    torch.testing.assert_close(loss, sum(by_row) / 12 / PLACES)
    parts = [NEXT.loss(model, Code(ids=ids[i : i + 1]), condition[i : i + 1])["next_token"] for i in range(12)]
    torch.testing.assert_close(torch.stack(parts).mean(), loss)  # however a batch is divided
    slope = torch.autograd.grad(loss, model.head.outputs[0].weight, retain_graph=True)[0]
    assert slope.abs().sum() > 0
    assert torch.equal(through_end(ids, CODES).sum(dim=1), (lengths + 1).clamp(max=PLACES))


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_rows_that_are_made_are_valid_and_of_different_lengths(scale):
    model = network()
    ids = NEXT.sample(request(model, 40, scale)).ids
    check_valid(ids)
    assert len(set(before_end(ids, CODES).sum(dim=1).tolist())) > 3
    alone = NEXT.sample(request(model, 1, scale)).ids
    assert torch.equal(alone[0], ids[0])


@torch.no_grad()
def test_the_end_is_never_first_even_where_nothing_is_likelier():
    model = network()
    model.head.outputs[0].weight.zero_()
    plain = copy.deepcopy(model)
    model.last_norm.weight.fill_(1.0)
    model.head.outputs[0].weight[CODES] = 5.0
    for made in (model, plain):
        ids = NEXT.sample(request(made, 20)).ids
        check_valid(ids)
    assert NEXT.read_settings({"temperature": 0.0}).temperature == 0
    check_valid(NEXT.sample(request(model, 20), NEXT.read_settings({"temperature": 0.0})).ids)


@torch.no_grad()
@pytest.mark.parametrize("preserve", [0.3, 0.8, 1.0])
def test_rows_that_are_made_again_are_valid(preserve):
    model, ids = network(), rows(40)
    made = NEXT.regenerate(request(model, 40), Original(Code(ids=ids), preserve, None)).ids
    check_valid(made)
    assert torch.equal(made, ids) == (preserve == 1.0)


def test_no_other_order_makes_such_rows():
    other = build("objectives", {"kind": "random_order", "anneal_start": 1, "anneal_end": 2})
    with pytest.raises(ValueError, match="from their first token on") as error:
        other.sample(request(network(), 2), other.read_settings({"order": "random"}))
    assert "\n" not in str(error.value)


def test_the_end_is_no_code_whose_use_is_counted():
    counts = count_by_codebook(rows(), SPEC)
    assert counts.shape == (1, CODES) and counts.sum() == before_end(rows(), CODES).sum()


def test_the_end_is_never_exchanged_for_a_code_where_codes_are_perturbed():
    torch.manual_seed(0)
    neck, ids = build("bottlenecks", {"kind": "vector_quantize", "dim": 4, "vocab": CODES}), rows()
    shaken = as_perturbed(neck, Code(ids=ids), Exchange(0.9, CODES), list(range(12)), 0).ids
    assert torch.equal(shaken == CODES, ids == CODES) and not torch.equal(shaken, ids)


def test_a_card_says_how_long_rows_are():
    ids = rows(16)  # two of every length
    inputs = tokenizer_inputs(SimpleNamespace(spec=SPEC), {"ids": ids}, {})
    (number,) = measured(RowLength(), inputs).values()
    assert number.value == 4.5 and number.details["least"] == 1 and number.details["most"] == PLACES
    assert number.details["median"] == 4.5 and number.protocol["places"] == PLACES
    full = SimpleNamespace(spec=replace(SPEC, ends=False))
    assert not measured(RowLength(), tokenizer_inputs(full, {"ids": ids}, {}))


@pytest.mark.parametrize(
    "fields", [{"grid": (2, 4)}, {"codebooks": 2}, {"vocab": 0}, {"levels": (4, 4)}, {"segments": ((4,), (4,))}]
)
def test_only_a_row_of_ids_can_end(fields):
    with pytest.raises(ValueError, match="only a row of tokens with one id each can end early"):
        LatentSpec(**{"grid": (8,), "dim": 4, "vocab": 10, "ends": True} | fields)


@pytest.mark.parametrize(
    "objective, network, message",
    [
        ("masked_token", "bidirectional_transformer", "generator.objective: masked_token makes rows of full length"),
        ("next_token", "segment_transformer", "generator.network: segment_transformer makes rows of full length"),
    ],
)
def test_generators_of_rows_of_full_length_are_refused_in_a_line(objective, network, message):
    recipe = load("digits_lavit", [f"generator.objective.kind={objective}"])
    recipe.generator.network = {"kind": network, "depth": 2, "width": 32, "heads": 2}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        check_recipe(recipe)
    assert "\n" not in str(error.value)
