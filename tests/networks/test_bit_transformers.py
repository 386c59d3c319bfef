"""The transformers of bits: what they may see of codes and captions, the cache, and what is refused."""

import generating
import pytest
import torch
from contracts import randomised
from torch import Tensor

from pipeline.code import Code, Condition, LatentSpec, TextSpec
from pipeline.components import build
from pipeline.draws import ImageDraws
from pipeline.networks.base import Network
from pipeline.nn.text_keys import LayeredText, visible
from pipeline.objectives.next_token import NextToken
from pipeline.recipes.files import CONFIGS, read
from pipeline.samplers.guidance import Guidance

TEXT = {"text_tokens": 4, "text_dim": 5, "text_layers": 2}
SIZES = {"depth": 2, "width": 24, "heads": 3}
KINDS = ("causal_bit_transformer", "bit_diffusion_transformer")


def network(kind: str, num_classes: int = 3, grid=(5,), **derived) -> Network:
    shape = {"grid": list(grid), "vocab": 2, "codebooks": 7, "num_classes": num_classes, "dim": 1} | derived
    return randomised(build("networks", {"kind": kind, **SIZES}, **shape), 0.3).eval()


def captions(count: int = 3, seed: int = 0) -> Condition:
    """Of two, three, ... places, padded on the left as Instella-T2I's are."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(4) >= (2 - torch.arange(count) % 3)[:, None]
    return Condition(
        labels=torch.arange(count) % 3, text=torch.randn(count, 4, 10, generator=generator), text_mask=mask
    )


def codes(count: int = 3, seed: int = 1) -> Tensor:
    return torch.randint(2, (count, 5, 7), generator=torch.Generator().manual_seed(seed))


def ask(model: Network, ids: Tensor, condition: Condition | None) -> Tensor:
    time = () if model.role == "causal" else (torch.linspace(0.2, 0.8, len(ids)),)
    return model(ids, *time, condition)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_know_nothing_of_each_other(kind):
    model, ids, given = network(kind, **TEXT), codes(), captions()
    answer = ask(model, ids, given)
    for i in range(3):
        time = () if model.role == "causal" else (torch.linspace(0.2, 0.8, 3)[i : i + 1],)
        torch.testing.assert_close(model(ids[i : i + 1], *time, given[i : i + 1])[0], answer[i], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("text", [{}, TEXT], ids=["labels", "captions"])
def test_logits_depend_on_earlier_bits_alone(text):
    model, ids, given = network("causal_bit_transformer", **text), codes(), captions() if text else None
    answer = model(ids, given)
    for j in range(5):
        changed = ids.clone()
        changed[:, j] = 1 - changed[:, j]
        differs = (model(changed, given) - answer).abs().amax(dim=(0, 2, 3)) > 1e-6
        assert differs.tolist() == [False] * (j + 1) + [True] * (4 - j)


@torch.no_grad()
@pytest.mark.parametrize("text", [{}, TEXT], ids=["labels", "captions"])
def test_token_by_token_is_all_at_once(text):
    model, ids = network("causal_bit_transformer", **text), codes()
    given = captions() if text else Condition(labels=torch.arange(3))
    memory, last, logits = model.begin(3, given), None, []

    def choose(answer: Tensor, codebook: slice) -> Tensor:
        logits.append(answer)
        return ids[:, len(logits) - 1 : len(logits)]

    for _ in range(5):
        last = model.advance(memory, last, choose)
    torch.testing.assert_close(torch.cat(logits, dim=1), model(ids, given), atol=1e-5, rtol=1e-4)
    assert memory.caches[0].length == 5 + (4 if text else 0) == memory.caches[0].capacity


@torch.no_grad()
def test_guidance_may_end_before_the_last_token():
    """Unguided rows leave the memory with their captions; the rest is as if they were never asked."""
    model, given = network("causal_bit_transformer", **TEXT), captions()
    spec = LatentSpec((5,), dim=1, vocab=2, codebooks=7)
    draws = [ImageDraws.from_seeds([1, 2, 3]) for _ in range(3)]
    part = generating.sample(NextToken(), model, given, spec, draws[0], 5, Guidance(3.0, interval=(0.7, 1.0))).ids
    plain = generating.sample(NextToken(), model, given, spec, draws[1], 5).ids
    whole = generating.sample(NextToken(), model, given, spec, draws[2], 5, Guidance(3.0)).ids
    assert torch.equal(part[:, :2], whole[:, :2]) and not torch.equal(part, whole) and not torch.equal(part, plain)


@torch.no_grad()
def test_preserved_tokens_are_fed_back():
    model, given, ids = network("causal_bit_transformer", **TEXT), captions(), codes()
    made = [
        generating.regenerate(
            NextToken(), model, Code(ids=ids), given, preserve, ImageDraws.from_seeds([1, 2, 3]), 5
        ).ids
        for preserve in (1.0, 0.0)
    ]
    assert torch.equal(made[0], ids) and not torch.equal(made[1], ids)


def test_blocks_read_layers_at_their_share_of_the_way():
    text = torch.arange(6.0).expand(2, 3, 6)
    given = Condition(text=text, text_mask=torch.ones(2, 3, dtype=torch.bool))
    for layers, depth, expected in ((6, 6, [0, 1, 2, 3, 4, 5]), (3, 6, [0, 0, 2, 2, 4, 4]), (6, 3, [0, 2, 4])):
        reader = LayeredText(TextSpec(3, 6 // layers, layers), depth, "learned")
        keys = reader(given, 2, torch.device("cpu"))
        assert [int(layer[0, 0, 0]) for layer in keys.layers] == expected


def test_what_tokens_see():
    mask = torch.tensor([[False, True]])
    square = visible(slice(0, 3), mask, True, torch.device("cpu"))
    assert square.int().tolist() == [[[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]]
    assert visible(slice(2, 3), mask, True, torch.device("cpu")).int().tolist() == [[[0, 1, 1, 1, 1]]]
    assert visible(slice(2, 3), None, True, torch.device("cpu")) is None
    assert visible(slice(0, 3), None, False, torch.device("cpu")) is None


@pytest.mark.parametrize("name, count", [("instella_ar", 877.2e6), ("instella_diffusion", 1292.5e6)])
def test_published_sizes(name, count):
    """0.8 and 1.2 billion are published."""
    node = read(CONFIGS / "networks" / f"{name}.yaml")["generator"]["network"]
    derived = {"grid": [128], "vocab": 2, "codebooks": 64, "num_classes": 0, "text_dim": 2048, "text_layers": 16}
    with torch.device("meta"):
        model = build("networks", node, text_tokens=128, **derived)
    assert abs(sum(p.numel() for p in model.parameters()) / count - 1) < 1e-3


def test_what_does_not_fit_is_one_line():
    for kind in KINDS:
        with pytest.raises(ValueError, match="codebooks of 2, 4, 8, ... ids, and this one has 12"):
            network(kind, vocab=12)
        with pytest.raises(ValueError, match="without classes"):
            ask(network(kind, num_classes=0), codes(), Condition(labels=torch.arange(3)))
        with pytest.raises(ValueError, match="give features of the text encoder"):
            ask(network(kind, **TEXT | {"text_tokens": 6}), codes(), captions())
        with pytest.raises(ValueError, match="does not fit the network's grid"):
            ask(network(kind), codes()[:, :4], None)
    model = network("causal_bit_transformer")
    with pytest.raises(ValueError, match="row by row"):
        model(codes(), None, torch.arange(5).expand(3, -1))
    with pytest.raises(ValueError, match="too many to write out; use codebooks of 262144"):
        network("causal_bit_transformer", vocab=2**20, codebooks=1)
