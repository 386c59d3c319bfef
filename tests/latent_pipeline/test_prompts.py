"""Prompts and their features are read as people who know diffusers give them, and misfits refused in one line."""

import pytest
import torch
from support.tiny_pipeline import fails, make_pipeline

from pipeline.code import Condition, TextSpec
from pipeline.prompts import CallWords, read_words

SPEC = TextSpec(tokens=5, dim=4, layers=2, pooled=3)


def features(count: int) -> dict:
    return {"prompt_embeds": torch.randn(count, 5, 8), "pooled_prompt_embeds": torch.randn(count, 3)}


def test_a_single_prompt_is_for_all_images_and_a_list_has_one_per_image():
    one, two = read_words({"prompt": "a fox"}, SPEC), read_words({"prompt": ["a fox", "an owl"]}, SPEC)
    assert one.count(None) is None and one.count(3) == 3 and one.images(None, 2) == 2
    assert one.repeated(3, 1).prompt.rows == ["a fox"] * 3
    assert two.count(None) == 2 and two.images(2, 2) == 4
    assert two.repeated(4, 2).prompt.rows == ["a fox", "a fox", "an owl", "an owl"]
    with pytest.raises(ValueError, match="2 of prompt for 3 images"):
        two.count(3)
    both = read_words({"prompt": ["a fox", "an owl"], "negative_prompt": "blue"}, SPEC).repeated(2, 1)
    assert both.negative_prompt.rows == ["blue", "blue"]


def test_features_come_with_mask_and_pooled_vector():
    given = features(2)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    words = read_words(given | {"prompt_attention_mask": mask}, SPEC)
    rows = words.prompt.rows
    assert words.count(None) == 2 and rows.text_mask.dtype is torch.bool
    assert not rows.text[0, 2:].any() and torch.equal(rows.text[1], given["prompt_embeds"][1])
    again = read_words({"prompt_embeds": rows}, SPEC).prompt.rows
    assert torch.equal(again.text, rows.text) and torch.equal(again.pooled, given["pooled_prompt_embeds"])
    assert read_words(features(1), SPEC).count(None) is None


@pytest.mark.parametrize(
    "given, match",
    [
        ({"prompt": 3}, "prompt is 3; give a text"),
        ({"prompt": []}, "give a text"),
        ({"prompt": ["a", None]}, "give a text"),
        ({}, "asked in words"),
        ({"negative_prompt": "blue"}, "asked in words"),
        (features(1) | {"prompt": "a fox"}, "both given"),
        ({"prompt": "a fox", "prompt_attention_mask": torch.ones(1, 5)}, "belongs to a tensor of prompt_embeds"),
        ({"prompt_embeds": torch.randn(1, 5, 8)}, r"pooled vector .* not given; this generator needs \[1, 3\]"),
        ({"prompt_embeds": torch.randn(1, 4, 8)}, r"\[1, 4, 8\]; give a tensor of floats \[B, 5, 8\]"),
        ({"prompt_embeds": "a fox"}, "are str"),
        (features(1) | {"prompt_attention_mask": torch.zeros(1, 5)}, "row without a token"),
        (features(1) | {"prompt_attention_mask": torch.ones(2, 5)}, "the mask of prompt_embeds is"),
        (features(1) | {"prompt_embeds": torch.full((1, 5, 8), torch.nan)}, "not finite"),
        ({"prompt_embeds": Condition(torch.zeros(1).long(), torch.zeros(1, 5, 8))}, "give these as class_labels"),
    ],
)
def test_what_does_not_fit_is_refused(given, match):
    with pytest.raises(ValueError, match=match) as error:
        read_words(given, SPEC)
    assert "\n" not in str(error.value)


def test_a_generator_of_classes_reads_no_prompt():
    pipe = make_pipeline()
    assert pipe.text_spec is None and read_words({}, None) == CallWords()
    fails(pipe, "reads no text; leave prompt out", 0, prompt="a fox")
    fails(pipe, "reads no text; leave negative_prompt_embeds out", 0, negative_prompt_embeds=torch.zeros(1, 2, 3))
    fails(pipe, "set num_images_per_label in place of num_images_per_prompt", 0, num_images_per_prompt=2)
    with pytest.raises(ValueError, match="reads no text"):
        pipe.encode_prompt("a fox")
