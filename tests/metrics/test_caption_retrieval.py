"""Retrieval is 1 where every image lies at its caption, and chance where it lies anywhere; the judge learns pairs."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from metric_inputs import measured, sample_inputs
from support.vision_folders import save_models

from pipeline.features.caption_judge import CaptionMatcher, ClipJudge, TrainedJudge, fit_matcher, pieces_of
from pipeline.features.comparison import ImageSets
from pipeline.features.extractors import PixelFeatures
from pipeline.metrics.caption_retrieval import CaptionRetrieval, show

COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "white": (1, 1, 1)}
CAPTIONS = [f"{size} {colour}" for size in ("a small", "a large") for colour in (*COLOURS, "black", "grey")]


class KnownJudge(TrainedJudge):
    """Captions at the axes of a space."""

    def __init__(self):
        super().__init__(None, "0", 0)

    def texts(self, captions):
        return torch.eye(len(CAPTIONS))[[CAPTIONS.index(caption) for caption in captions]]


def number_of(seen: torch.Tensor, own: torch.Tensor):
    rows = {"pixels": torch.randn(len(own), 4), "seen": seen, "captions": own}
    real = {"pixels": torch.randn(len(own), 4), "seen": torch.eye(len(CAPTIONS))[own], "captions": own}
    inputs = sample_inputs([PixelFeatures()], rows, real, real, near=ImageSets(rows, real, real, CAPTIONS))
    inputs.extractors.caption_judge = KnownJudge()
    return measured(CaptionRetrieval(), inputs)["caption_retrieval_small"]


def test_images_at_their_captions_are_found_and_others_by_chance():
    own = torch.arange(1200) % len(CAPTIONS)
    exact = number_of(torch.eye(len(CAPTIONS))[own], own)
    assert exact.value == 1 and exact.held_out == 1 and exact.details["chance"] == 0.1
    assert exact.protocol["among"] == 10 and "small networks" in exact.protocol["judge"]["what"]
    noise = number_of(torch.randn(1200, len(CAPTIONS), generator=torch.Generator().manual_seed(1)), own)
    assert abs(noise.value - 0.1) < 0.03


def test_the_other_captions_are_a_function_of_the_caption():
    pool = torch.arange(len(CAPTIONS))
    shown = show(CAPTIONS, pool, 3, 10)
    assert shown[0] == 3 and len(set(shown.tolist())) == 10
    assert torch.equal(shown, show(CAPTIONS, pool, 3, 10))
    assert not torch.equal(shown[1:], show(CAPTIONS, pool, 4, 10)[1:])


def test_without_prompts_there_is_no_number():
    rows = {"pixels": torch.randn(4, 4)}
    assert not measured(CaptionRetrieval(), sample_inputs([PixelFeatures()], rows, rows, rows))


def pictures(names: list[str], seed: int) -> torch.Tensor:
    noise = torch.rand(len(names), 3, 8, 8, generator=torch.Generator().manual_seed(seed)) - 0.5
    return torch.tensor([COLOURS[name] for name in names]).view(-1, 3, 1, 1) * 0.5 + noise


def test_the_small_judge_learns_which_caption_a_picture_has(tmp_path):
    names = list(COLOURS) * 8
    state = torch.random.get_rng_state()
    network = fit_matcher(pictures(names, 1), [(f"all {name}", name) for name in names], 3, steps=60, batch=16)
    assert torch.equal(torch.random.get_rng_state(), state)
    judge, new = TrainedJudge(network, "0", 3), list(COLOURS) * 3
    found = (judge.images(pictures(new, 2)) @ judge.texts([f"the {name} one" for name in COLOURS]).T).argmax(1)
    assert (found == torch.arange(12) % 4).float().mean() > 0.9
    network.save_pretrained(tmp_path)
    again = TrainedJudge(CaptionMatcher.from_pretrained(tmp_path).eval(), "0", 3)
    torch.testing.assert_close(again.texts(["red"]), judge.texts(["red"]))


def test_words_and_their_parts_are_hashed():
    assert pieces_of("Red, fox!", 100) == pieces_of("red fox", 100) and pieces_of("", 100)
    assert set(pieces_of("foxes", 1 << 30)) & set(pieces_of("fox", 1 << 30))


@pytest.fixture
def clip(tmp_path) -> Path:
    """A tiny CLIP with a tokenizer of letters."""
    save_models(tmp_path)
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *"abcdefghij", *(f"{letter}</w>" for letter in "abcdefghij")]
    folder = tmp_path / "clip"
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return folder


def test_clip_judges_as_transformers_does(clip):
    judge = ClipJudge(clip, torch.device("cpu"))
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    images = torch.rand(2, 3, 12, 12) * 2 - 1
    mean, std = (judge.mean, judge.std)
    pixels = ((images * 127.5 + 127.5).round() / 255 - mean) / std
    given = judge.tokenizer(["a b", "c"], padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"], pixel_values=pixels)
    torch.testing.assert_close(judge.images(images), out.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(judge.texts(["a b", "c"]), out.text_embeds, atol=1e-5, rtol=1e-4)
    assert judge.describe()["kind"] == "clip"
