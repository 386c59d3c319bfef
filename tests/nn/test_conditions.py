"""What a model reads of a condition, and what stands where nothing is asked for."""

import torch
from torch import Tensor

from pipeline.code import Condition, TextSpec
from pipeline.nn.conditions import fields_read, filled, null_of, select, text_arguments, text_spec, where

CAPTIONS = Condition(
    labels=torch.tensor([1, 2, 0]),
    text=torch.randn(3, 4, 5),
    text_mask=torch.tensor([[True, True, False, False], [True, True, True, True], [False, False, False, False]]),
    pooled=torch.randn(3, 6),
    score=torch.tensor([4.0, 5.0, 6.0]),
)


def same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is None and other is None or torch.equal(one, other)


def test_arguments_of_captions_and_back():
    for spec in (TextSpec(4, 5), TextSpec(4, 5, 3, 7), None):
        assert text_spec(text_arguments(spec)) == spec
    assert text_spec({"grid": [4]}) is None


def test_a_model_reads_what_its_arguments_say():
    assert fields_read({"num_classes": 3}) == ("labels",)
    assert fields_read(text_arguments(TextSpec(4, 5))) == ("text", "text_mask")
    assert fields_read({"num_classes": 3, **text_arguments(TextSpec(4, 5, pooled=6))}) == (
        *("labels", "text", "pooled", "text_mask"),
    )
    assert fields_read({"num_classes": 0}) == ()


def test_selecting_leaves_nothing_or_what_was_named():
    assert select(CAPTIONS, ()) is None and select(None, ("labels",)) is None
    assert select(Condition(labels=CAPTIONS.labels), ("text", "text_mask")) is None
    chosen = select(CAPTIONS, ("labels", "pooled"))
    assert chosen.text is None and torch.equal(chosen.pooled, CAPTIONS.pooled)


def test_dropping_replaces_all_of_a_condition_or_none_of_it():
    null = null_of(CAPTIONS, 9)
    assert null.labels.tolist() == [9, 9, 9] and not null.text_mask.any()
    mixed = where(torch.tensor([True, False, False]), null, CAPTIONS)
    assert mixed.labels.tolist() == [9, 2, 0]
    assert mixed.text_mask.sum(dim=1).tolist() == [0, 4, 0]
    assert torch.equal(mixed.text, CAPTIONS.text)
    for name, value in vars(where(torch.zeros(3, dtype=torch.bool), null, CAPTIONS)).items():
        assert same(value, getattr(CAPTIONS, name)), name


def test_where_mixes_all_tensors_of_two_conditions():
    other = CAPTIONS.map(lambda tensor: tensor.flip(0))
    mixed = where(torch.tensor([False, True, False]), other, CAPTIONS)
    for name, value in vars(mixed).items():
        ours, theirs = getattr(CAPTIONS, name), getattr(other, name)
        assert torch.equal(value[1], theirs[1]) and torch.equal(value[::2], ours[::2]), name


def test_a_negative_caption_is_taken_as_a_whole_and_the_rest_is_null():
    null = null_of(CAPTIONS, 9)
    negative = Condition(text=torch.zeros(3, 4, 5), text_mask=torch.ones(3, 4, dtype=torch.bool))
    found = filled(negative, null)
    assert found.labels.tolist() == [9, 9, 9] and found.text_mask.all() and found.pooled is None
    found = filled(Condition(labels=torch.tensor([4, 4, 4])), null)
    assert found.labels.tolist() == [4, 4, 4] and not found.text_mask.any()
