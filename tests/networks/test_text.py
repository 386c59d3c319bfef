"""Networks that read captions: their nulls, what training and sampling do by text, and what stays out of it."""

from dataclasses import replace

import generating
import pytest
import torch
from contracts import TEXT, captions_of, condition_of, network_of, randomised, request_of
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec, TextSpec
from pipeline.components import build
from pipeline.draws import ImageDraws, StepDraws
from pipeline.latents.code_source import CodeBatch
from pipeline.nn.blocks import NOTHING
from pipeline.nn.causal_sequence import align_right
from pipeline.nn.conditions import text_arguments
from pipeline.nn.text import Caption, NullCaption, TextReader, join_caption
from pipeline.samplers.guidance import Guidance, check_pair
from pipeline.training.generation import Generation

ROLES = {
    "denoiser": {"kind": "diffusion_transformer"},
    "trunk": {"kind": "wide_head_transformer", "head_width": 24, "head_heads": 3},
    "causal": {"kind": "causal_transformer"},
    "masked": {"kind": "bidirectional_transformer"},
}
READINGS = ("context", "cross_attention", "pooled")
every_network = pytest.mark.parametrize("node", ROLES.values(), ids=ROLES)
every_reading = pytest.mark.parametrize("reading", READINGS)
SPEC = TextSpec(tokens=4, dim=3, layers=2, pooled=5)


def tiny(node: dict, **arguments) -> nn.Module:
    sizes = {"depth": 2, "width": 16, "heads": 2, "head_depth": 1}
    sizes = sizes if "wide" in node["kind"] else {name: sizes[name] for name in ("depth", "width", "heads")}
    return network_of(node | sizes | {"num_classes": 0} | TEXT | arguments)


# The null


@pytest.mark.parametrize("kind", ["learned", "empty"])
def test_the_null_stands_where_no_place_of_a_caption_holds_a_token(kind):
    null = NullCaption(SPEC, kind)
    text, pooled = torch.randn(2, 4, 6), torch.randn(2, 5)
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    found, places, vectors = null(text, mask, pooled)
    assert torch.equal(found[0], text[0] * mask[0, :, None]) and torch.equal(vectors[0], pooled[0])
    assert torch.equal(found[1], null.features * null.mask[:, None]) and torch.equal(vectors[1], null.pooled)
    assert torch.equal(places, torch.stack([mask[0], null.mask]))
    assert set(dict(null.named_parameters())) == ({"features", "pooled"} if kind == "learned" else set())
    assert {"features", "pooled", "mask"} == set(null.state_dict())


def test_an_empty_caption_of_no_tokens_is_its_first_place():
    null = NullCaption(SPEC, "empty")
    empty = Condition(None, torch.randn(1, 4, 6), torch.zeros(1, 4, dtype=torch.bool), torch.randn(1, 5))
    null.set_empty(empty)
    assert null.mask.tolist() == [True, False, False, False] and torch.equal(null.features, empty.text[0])
    null.set_empty(replace(empty, text_mask=torch.tensor([[False, True, True, False]])))
    assert null.mask.tolist() == [False, True, True, False]


@every_network
def test_the_empty_captions_features_are_the_null_and_are_saved(node, tmp_path):
    network = tiny(node, text_null="empty")
    empty = captions_of(network, [2], seed=7)
    network.set_empty_text(empty)
    request = request_of(network)
    asked = empty[torch.zeros(3, dtype=torch.int64)]
    with torch.no_grad():
        unasked = network(**request | {"condition": None})
        assert torch.equal(network(**request | {"condition": asked}), unasked)
        network.save_pretrained(tmp_path)
        again = type(network).from_pretrained(tmp_path).eval()
        assert torch.equal(again(**request | {"condition": None}), unasked)
        learned = tiny(node)
        before = {name: weight.clone() for name, weight in learned.state_dict().items()}
        learned.set_empty_text(empty)  # which it has no use for
    assert all(torch.equal(weight, before[name]) for name, weight in learned.state_dict().items())


# What blocks see


def test_a_caption_joins_the_sequence_or_is_seen_across():
    h, tables = torch.randn(2, 3, 8), (torch.randn(3, 4), torch.randn(3, 4))
    mask = torch.tensor([[True, False], [True, True]])
    places = torch.randn(2, 2, 8)
    assert join_caption(h, tables, None) == (h, tables, NOTHING)
    assert join_caption(h, tables, Caption(None, mask, h[:, 0], False))[2] is NOTHING
    joined, (cosines, sines), attended = join_caption(h, tables, Caption(places, mask, None, False))
    assert torch.equal(joined, torch.cat([h, places], dim=1)) and attended.text is None
    assert cosines[3:].eq(1).all() and sines[3:].eq(0).all() and torch.equal(cosines[:3], tables[0])
    assert attended.keys[:, 0, 0].tolist() == [[True] * 4 + [False], [True] * 5]
    same, _, attended = join_caption(h, None, Caption(places, mask, None, True))
    assert same is h and attended.keys is None and torch.equal(attended.text_keys[:, 0, 0], mask)


def test_a_prefix_ends_with_the_captions_last_token():
    mask = torch.tensor([[True, True, False, False], [False, True, False, True], [True] * 4])
    places = torch.arange(12.0).view(3, 4, 1)
    aligned = align_right(Caption(places, mask, None, False))
    assert aligned.places[..., 0].tolist() == [[2, 3, 0, 1], [4, 6, 5, 7], [8, 9, 10, 11]]
    assert aligned.mask.tolist() == [[False, False, True, True], [False, False, True, True], [True] * 4]
    crossed = Caption(places, mask, None, True)
    assert align_right(crossed) is crossed and align_right(None) is None


def test_the_mean_over_places_with_tokens_stands_for_a_pooled_vector():
    reader = TextReader(replace(SPEC, pooled=0), 8, "pooled", "linear", "learned")
    text, mask = torch.randn(2, 4, 6), torch.tensor([[True, True, False, False], [True] * 4])
    found = reader(Condition(text=text, text_mask=mask), 2, torch.device("cpu"))
    expected = reader.pooled_embedding(torch.stack([text[0, :2].mean(dim=0), text[1].mean(dim=0)]))
    assert found.places is None
    torch.testing.assert_close(found.vector, expected)


@every_network
def test_a_new_network_that_looks_across_begins_as_if_there_were_no_captions(node):
    sizes = {"depth": 2, "width": 16, "heads": 2} | ({"head_depth": 1} if "wide" in node["kind"] else {})
    derived = {"grid": [4, 4], "dim": 3, "vocab": 11, "codebooks": 1, "outputs": 1, "num_classes": 0}
    text = text_arguments(replace(SPEC, pooled=0))
    network = build("networks", node | sizes | {"text_reading": "cross_attention"}, **derived, **text).eval()
    request = request_of(network)
    with torch.no_grad():
        asked, unasked = network(**request), network(**request | {"condition": None})
    assert torch.equal(asked, unasked)


@every_network
@every_reading
def test_images_of_a_batch_do_not_see_each_others_captions(node, reading):
    network = tiny(node, text_reading=reading)
    request, turned = request_of(network, 4), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        answer = network(**request)
        other = network(**{name: value[turned] for name, value in request.items()})
    torch.testing.assert_close(other, answer[turned], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arguments", [{}, {"attention_dropout": 0.3}], ids=["plain", "dropout"])
def test_padded_places_are_not_seen_when_weights_are_dropped(arguments):
    for node in (ROLES["causal"], ROLES["masked"]):
        network = tiny(node, **arguments)
        request = request_of(network)
        condition = request["condition"]
        other = replace(condition, text=condition.text.clone().masked_fill(~condition.text_mask[..., None], 9.0))
        draws = {"dropout": StepDraws(0, 0, slice(0, 3), 3)}
        with torch.no_grad():
            found = [network(**request | {"condition": each}, **draws) for each in (condition, other)]
        assert torch.equal(*found)


# Sampling


def law_of(network: nn.Module) -> tuple[object, LatentSpec]:
    kinds = {"denoiser": "flow_matching", "causal": "next_token", "masked": "masked_token"}
    config = network.config
    spec = LatentSpec(tuple(config.grid), config.get("dim", 1), config.get("vocab", 0))
    return build("objectives", {"kind": kinds[network.role]}), spec


def sample(network: nn.Module, condition: Condition, guidance: Guidance = Guidance(), **asked) -> Tensor:
    law, spec = law_of(network)
    draws, steps = ImageDraws.from_seeds([1, 2, 3]), law.steps_for(spec, 2 if network.role == "denoiser" else None)
    code = generating.sample(law, network, condition, spec, draws, steps, guidance, **asked)
    return code.z if code.ids is None else code.ids.float()


@every_network
def test_guidance_leads_away_from_the_null_or_from_another_caption(node):
    network = randomised(tiny(node, num_classes=5), std=0.4)  # so that ids depend on what is asked
    condition = condition_of(network)
    unguided, guided = sample(network, condition), sample(network, condition, Guidance(9.0))
    assert torch.equal(sample(network, condition, Guidance(1.0), negative=network.null(condition)), unguided)
    assert not torch.equal(guided, unguided)
    assert torch.equal(sample(network, condition, Guidance(9.0), negative=network.null(condition)), guided)
    away = captions_of(network, [4, 2, 3], seed=6)
    led = sample(network, condition, Guidance(9.0), negative=away)
    assert not torch.equal(led, sample(network, condition, Guidance(9.0)))
    whole = replace(away, labels=torch.full((3,), 5))  # what the negative condition does not state is null
    assert torch.equal(sample(network, condition, Guidance(9.0), negative=whole), led)


@every_network
def test_a_code_made_anew_by_text_keeps_what_is_to_stay(node):
    network = tiny(node)
    law, spec = law_of(network)
    condition, draws = condition_of(network), ImageDraws.from_seeds([1, 2, 3])
    code = Code(ids=torch.arange(48).view(3, 16) % 11) if law.discrete else Code(z=torch.randn(3, 16, 3))
    kept = torch.arange(16).expand(3, -1) < 8
    steps = law.steps_for(spec, 2 if network.role == "denoiser" else None)
    made = generating.regenerate(law, network, code, condition, 0.0, draws, steps, Guidance(9.0), kept=kept)
    old, new = (each.ids if law.discrete else each.z for each in (code, made))
    assert torch.equal(old[kept], new[kept]) and not torch.equal(old, new)


def test_a_weak_network_reads_the_same_captions():
    network = tiny(ROLES["denoiser"])
    check_pair(network, tiny(ROLES["denoiser"], depth=1, text_reading="pooled"))
    for other in ({"text_tokens": 5}, {"text_dim": 4}, {"text_tokens": 0, "text_dim": 0, "text_layers": 1}):
        with pytest.raises(ValueError, match="the weak network has text_"):
            check_pair(network, tiny(ROLES["denoiser"], **other))


@pytest.mark.parametrize("role", [pytest.param(r, marks=() if r == "denoiser" else pytest.mark.slow) for r in ROLES])
def test_blocks_are_compiled_once_whatever_the_lengths_of_captions(role):
    network = tiny(ROLES[role])
    request = request_of(network)
    expected = network(**request)
    torch._dynamo.reset(), torch._dynamo.utils.counters.clear()
    network.compile_repeated_blocks(fullgraph=True, backend="eager")
    for lengths in ([3, 4, 0], [1, 1, 1], [4, 4, 4], [0, 0, 0]):
        network(**request | {"condition": captions_of(network, lengths)})
    network(**request | {"condition": None})
    assert torch.allclose(network(**request), expected, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1 + (
        role == "trunk"
    )  # which has other blocks in its head
    torch._dynamo.reset()


# Training: two captions, and codes that follow from them

WORDS = TextSpec(tokens=3, dim=8)
TASKS = {
    "flow": ({"kind": "flow_matching"}, ROLES["denoiser"]),
    "wide_head": ({"kind": "flow_matching"}, ROLES["trunk"] | {"head_depth": 1}),
    "diffusion": ({"kind": "gaussian_diffusion"}, ROLES["denoiser"]),
    "next_token": ({"kind": "next_token"}, {"kind": "causal_transformer"}),
    "random_order": (
        {"kind": "random_order", "anneal_start": 1000, "anneal_end": 1000},
        {"kind": "causal_transformer", "target_positions": True, "position": "learned"},
    ),
    "masked": ({"kind": "masked_token", "label_smoothing": 0.0}, {"kind": "bidirectional_transformer", "dropout": 0.0}),
}


def red_and_blue(count: int) -> tuple[Tensor, Condition]:
    """Of so many images whether each is blue, and captions that say so, one of two tokens and one of three."""
    features = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    blue = torch.arange(count) % 2
    mask = torch.tensor([[True, True, False], [True, True, True]])
    return blue, Condition(text=features[blue], text_mask=mask[blue])


def batch_of(discrete: bool, count: int, seed: int) -> CodeBatch:
    """Codes of red images are near 1, or ids 0 and 1; those of blue ones near -1, or ids 2 and 3."""
    generator = torch.Generator().manual_seed(seed)
    blue, condition = red_and_blue(count)
    if discrete:
        ids = torch.randint(2, (count, 4), generator=generator) + 2 * blue[:, None]
        return CodeBatch(Code(ids=ids), None, condition)
    noise = 0.3 * torch.randn(count, 4, 2, generator=generator)
    return CodeBatch(Code(z=1 - 2.0 * blue[:, None, None] + noise), None, condition)


PAIRS = [
    pytest.param(*task, reading, id=f"{name}-{reading}", marks=() if (i + j) % 3 == 0 else pytest.mark.slow)
    for i, (name, task) in enumerate(TASKS.items())
    for j, reading in enumerate(READINGS)
]


@pytest.mark.parametrize("law, node, reading", PAIRS)
def test_training_by_text_lowers_the_loss_and_samples_follow_their_captions(law, node, reading):
    torch.manual_seed(0)
    objective = build("objectives", law)
    derived = {"grid": [2, 2], "dim": 2, "vocab": 4, "codebooks": 1, "num_classes": 0, "outputs": objective.outputs}
    stated = node | {"depth": 2, "width": 32, "heads": 2, "text_reading": reading, "condition_drop": 0.1}
    network = build("networks", stated, **derived, **text_arguments(WORDS))
    task = Generation(network, objective, dict.fromkeys(objective.terms, 1.0))
    optimizer, losses = torch.optim.AdamW(network.parameters(), 4e-3, weight_decay=0.0), []
    for step in range(80):
        draws = StepDraws(0, step, slice(0, 32), 32)
        ((_, terms),) = task.turns(batch_of(objective.discrete, 32, step), draws, step)
        loss = sum(terms.values())
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    network.eval()
    spec = LatentSpec((2, 2), 2, 4 if objective.discrete else 0)
    blue, condition = red_and_blue(16)
    draws, steps = ImageDraws.from_seeds(list(range(16))), objective.steps_for(spec, None if objective.discrete else 8)
    code = generating.sample(objective, network, condition, spec, draws, steps, Guidance(1.5))
    found = (code.ids >= 2).float().mean(dim=1) if objective.discrete else (code.z < 0).float().mean(dim=(1, 2))
    assert (found - blue).abs().mean() < 0.1
