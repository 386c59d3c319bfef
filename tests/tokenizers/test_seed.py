"""SEED's tokenizer: its queries are causal, its parts are trained apart, and its states and ids come of no pixels."""

import re

import pytest
import torch
from torch import Tensor

from pipeline.code import Code
from pipeline.components import build
from pipeline.nn.query_former import QueryFormer
from pipeline.tokenizers.seed import Seed

SIDE, TOKENS = 16, 6


def tokenizer(**settings: object) -> Seed:
    torch.manual_seed(1)
    node = {
        "kind": "seed",
        "frozen_encoder": {"kind": "stand_in"},
        "bottleneck": {"kind": "vector_quantize", "dim": 4, "vocab": 16, "unit_norm": False, "start": "kmeans"},
        "tokens": TOKENS,
        **{"width": 32, "depth": 3, "heads": 2, "hidden": 48, "branch_depth": 1, "reader_depth": 2},
        **{"embedding_width": 7, "pixel_width": 32, "pixel_depth": 1, "pixel_heads": 2, "pixel_patch": 4},
    }
    return build("tokenizers", node | settings, image_size=SIDE).eval()


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1


@torch.no_grad()
def test_ids_of_a_prefix_do_not_depend_on_later_queries():
    model = tokenizer(place_positions=True)
    model.query_former.queries.mul_(10)
    whole, ids = model.states(images()), model.encode(images()).ids
    model.query_former.queries[3:] += torch.randn(TOKENS - 3, 32)
    torch.testing.assert_close(model.states(images())[:, :3], whole[:, :3], atol=0, rtol=0)
    assert torch.equal(model.encode(images()).ids[:, :3], ids[:, :3])
    assert (model.states(images())[:, 3:] - whole[:, 3:]).abs().max() > 1e-3
    before = model.states(images())
    model.query_former.queries[0] += torch.randn(32)
    assert all((model.states(images())[:, i] - before[:, i]).abs().max() > 1e-6 for i in range(TOKENS))


@torch.no_grad()
def test_without_causal_every_query_sees_all():
    model = tokenizer(causal=False)
    before = model.states(images())
    model.query_former.queries[-1] += torch.randn(32)
    assert (model.states(images())[:, 0] - before[:, 0]).abs().max() > 1e-6


def test_one_query_after_another_is_all_at_once():
    torch.manual_seed(0)
    former = QueryFormer(5, 12, 16, 3, 2, 24, True).eval()
    memory = torch.randn(2, 7, 12)
    whole = former(memory)
    for count in range(1, 6):
        shorter = QueryFormer(count, 12, 16, 3, 2, 24, True).eval()
        state = former.state_dict() | {"queries": former.queries[:count]}
        shorter.load_state_dict(state)
        torch.testing.assert_close(shorter(memory), whole[:, :count])


def test_layers_of_even_number_read_the_image():
    former = QueryFormer(5, 12, 16, 4, 2, 24, True)
    assert [block.reading is not None for block in former.blocks] == [True, False, True, False]


def test_each_part_is_trained_apart_and_the_frozen_network_never():
    model = tokenizer()
    frozen = {id(p) for p in model.encoder.parameters()}
    parts = {part: {id(p) for p in model.trainable(part)} for part in model.can.parts}
    assert not any(chosen & frozen for chosen in parts.values())
    assert parts["features"] | parts["pixel_decoder"] == parts["all"]
    assert not parts["features"] & parts["pixel_decoder"]
    queries = {id(p) for p in (*model.embedding.parameters(), *model.query_former.parameters())}
    assert parts["features"] - parts["ids"] == queries


def test_ids_are_learned_without_pixels():
    model = tokenizer().train()
    rebuilt = model(images(), pixels=False)
    assert rebuilt.images is None and set(rebuilt.terms) == {"vq", "commit", "semantic"}
    assert rebuilt.features["image_embedding"].shape == (3, 7)
    (sum(rebuilt.terms.values()) + rebuilt.features["image_embedding"].square().mean()).backward()
    idle = [id(p) for p in model.trainable("features") if p.grad is None]
    assert not idle
    assert all(p.grad is None for p in model.trainable("pixel_decoder"))


def test_the_semantic_term_is_of_states_that_stay_as_they_are():
    """1 - cosine to the encoder's states, whose gradient is that of their reconstruction alone."""
    model = tokenizer()
    rebuilt = model(images(), pixels=False)
    code = model.encode(images())
    states, again = model.states(images()), model.rebuilt_states(model.decoder_input(Code(ids=code.ids)))
    cosine = torch.cosine_similarity(states, again, dim=2).mean()
    torch.testing.assert_close(rebuilt.terms["semantic"], 1 - cosine)
    rebuilt.terms["semantic"].backward()
    gradient = model.query_former.queries.grad
    assert gradient is not None and gradient.isfinite().all()  # by the ids alone, straight through


def test_tokens_of_a_transformer_have_their_class_token_first():
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = {"model_type": "dinov2", "patch_size": 14, "image_size": 28, **sizes}
    encoder = {"kind": "vision_transformer", "start": "random", "model": model, "image_patch": 8}
    given = tokenizer(frozen_encoder=encoder).encoder
    tokens, (maps,) = given.last_tokens(images()), given.maps(images())
    assert tokens.shape == (3, 1 + 4, 8)
    torch.testing.assert_close(tokens[:, 1:], maps.flatten(2).mT)


def test_image_half_of_blip2_is_made_without_weights():
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = {"model_type": "blip_2_vision_model", "patch_size": 14, "image_size": 28, **sizes}
    encoder = {"kind": "vision_transformer", "start": "random", "model": model, "image_patch": 8}
    assert tokenizer(frozen_encoder=encoder).encode(images()).ids.shape == (3, TOKENS)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"heads": 5}, "seed: a width of 32 is not divisible by 5 heads"),
        ({"branch_heads": 3}, "seed: a width of 32 is not divisible by 3 heads"),
        ({"pixel_heads": 5}, "seed: a width of 32 is not divisible by 5 heads"),
        ({"pixel_patch": 5}, "pixel_patch 5"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        tokenizer(**settings)
    assert "\n" not in str(error.value)
