"""The byte transformer learns from captions what bytes follow which, is saved, and says that it was trained."""

import pytest
import torch
from support.fresh_process import answers_of_saved

from pipeline.components import build, check
from pipeline.text_encoders.byte_transformer import to_bytes

TINY = {"kind": "byte_transformer", "tokens": 16, "width": 32, "depth": 2, "heads": 2, "steps": 60, "batch": 16}
CAPTIONS = ["red circle", "blue circle", "red square", "blue square", ""]


def trained(seed: int = 0, **changes):
    torch.manual_seed(seed)
    encoder = build("text_encoders", TINY | changes)
    return encoder, encoder.fit(CAPTIONS, seed)


def test_it_learns_from_captions_and_says_so():
    encoder, line = trained(steps=150)
    assert line.startswith("byte_transformer: trained for 150 steps on 4 captions of this recipe")
    first, last = (float(number) for number in line.split("fell from ")[1].split(" nats")[0].split(" to "))
    assert first > 4 and last < 0.5 * first, line
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())


def test_training_is_a_function_of_captions_and_seed():
    weights = [trained(seed)[0].state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["head.weight"], weights[2]["head.weight"])
    with pytest.raises(ValueError, match="all are empty"):
        build("text_encoders", TINY).fit(["", ""], 0)


def test_it_is_the_same_in_a_fresh_process(tmp_path):
    encoder, _ = trained(layers=[0, -1], steps=2)
    before = encoder.encode(CAPTIONS)
    after = answers_of_saved(tmp_path, {"encoder": (encoder.encode, CAPTIONS)})["encoder"]
    for name in ("text", "text_mask", "pooled"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert before.text.shape == (5, 16, 64)


def test_captions_are_bytes_after_a_start_token():
    ids, mask = to_bytes(["aé", "", "abcdef"], 5)
    assert ids.tolist() == [[256, 97, 195, 169, 0], [256, 0, 0, 0, 0], [256, 97, 98, 99, 100]]
    assert mask.sum(1).tolist() == [4, 1, 5]


def test_layers_are_those_that_are_stated():
    encoder, _ = trained(layers=[-1, 1, 0], steps=2)
    ids, mask = to_bytes(["red"], 16)
    states = encoder.states(ids, mask)
    text = encoder.encode(["red"]).text[0, :4].chunk(3, dim=-1)
    for part, layer in zip(text, (2, 1, 0)):
        torch.testing.assert_close(part, states[layer][0, :4])


@pytest.mark.parametrize(
    "change, message",
    [({"layers": [3]}, "no layer 3 of 2"), ({"width": 33}, "multiple of heads"), ({"tokens": 1}, "give 2 or more")],
)
def test_sizes_that_do_not_fit_are_refused_without_building(change, message):
    cls, arguments = check("text_encoders", TINY | change)
    with pytest.raises(ValueError, match=message):
        cls.geometry(arguments)
