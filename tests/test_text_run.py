"""A run whose tokenizer reads captions is sampled by them, measured by them, and published with its text encoder."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub import ModelCard
from PIL import Image
from support.captioned_pipeline import make_captioned_tokenizer
from support.tiny_pipeline import make_network, make_recipe, make_run, randomised
from support.tiny_text_models import save_model

from pipeline import LatentPipeline
from pipeline.captions.table import Captions
from pipeline.checks.publication import check_publication
from pipeline.checks.sampling import check_prompts
from pipeline.commands.export import export
from pipeline.components import build, find
from pipeline.features import caption_judge, judge
from pipeline.features.passes import evenly_spaced
from pipeline.measuring import samples as measuring
from pipeline.nn.conditions import text_arguments
from pipeline.recipes.schema import Recipe
from pipeline.runs.workspace import NOTE, Workspace
from pipeline.sampling.many_images import read_prompts
from stages import encode_text, evaluate, publish, sample

ENCODER = {"kind": "byte_transformer", "tokens": 12, "width": 8, "depth": 1, "heads": 2, "steps": 2, "batch": 4}
MODEL = {"kind": "tatitok", "bottleneck": {"kind": "gaussian", "dim": 3}, "tokens": 4}
MODEL |= {"width": 16, "depth": 1, "heads": 2, "patch_size": 8}


def recipe_of(**sections) -> Recipe:
    source = {"kind": "shapes", "images": 20, "held_out": 10, "size": 16}
    values = {"data": {"source": source, "size": 16}, "text": {"encoder": ENCODER}, "tokenizer": {"model": MODEL}}
    return make_recipe(**values | {"sample": {"images": 6, "steps": 2, "batch": 4}} | sections)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Workspace:
    """The stages before sampling: captions that are encoded, and parts whose weights are drawn."""
    root = tmp_path_factory.mktemp("runs") / "tiny"
    make_run(root)
    for folder in ("decoder", "tokenizer"):
        make_captioned_tokenizer("tatitok").save_pretrained(root / folder)
    make_network(grid=[4]).save_pretrained(root / "generator" / "network")
    (root / "generator" / "class_names.json").write_text('["circle", "square", "triangle", "cross"]')
    made = Workspace(root, Accelerator(cpu=True))
    (root / "text").mkdir()
    encode_text.run(recipe_of(), made, root / "text")
    for name in ("text", "tokenizer"):
        (root / name / NOTE).write_text((root / "decoder" / NOTE).read_text())
    return made


@pytest.fixture(scope="module")
def sampled(work) -> Path:
    out = work.root / "samples"
    sample.run(recipe_of(), work, out)
    (out / NOTE).write_text((work.root / "decoder" / NOTE).read_text())
    return out


def test_samples_are_of_held_out_captions_and_of_their_classes(work, sampled):
    rows = evenly_spaced(None, 10, 6)
    prompts = read_prompts(sampled)
    assert prompts == Captions(work.root / "text", "held_out").texts(rows)
    with np.load(sampled / "samples.npz") as archive:
        names = [("circle", "square", "triangle", "cross")[label] for label in archive["arr_1"]]
    assert all(name in prompt for name, prompt in zip(names, prompts))
    assert json.loads((sampled / "samples.json").read_text())["prompts"] == "held_out"


def test_a_file_of_prompts_takes_their_place(work, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\n")
    recipe = recipe_of(sample={"images": 3, "steps": 1, "prompts": str(tmp_path / "prompts.txt")})
    sample.run(recipe, work, tmp_path / "samples")
    assert read_prompts(tmp_path / "samples") == ["a red circle", "a blue cross", "a red circle"]
    before = sample.uses(recipe)
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    assert sample.uses(recipe) != before


def test_a_report_tells_retrieval_beside_chance_and_real_pictures(work, sampled, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "fit", partial(judge.fit, steps=2, batch=8))
    monkeypatch.setattr(caption_judge, "fit_matcher", partial(caption_judge.fit_matcher, steps=2, batch=8))
    recipe = recipe_of(evaluate={"metrics": ["caption_retrieval", "psnr"], "features": ["pixels"]})
    recipe.generator.condition = "class_and_text"
    evaluate.run(recipe, work, tmp_path)
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    number = numbers["caption_retrieval_small"]
    assert number["details"]["chance"] == 1 / number["protocol"]["among"] and 0 <= number["value"] <= 1
    assert 0 <= number["held_out"] <= 1 and number["protocol"]["judge"]["seed"] == caption_judge.caption_seed(0)
    page = (tmp_path / "index.html").read_text()
    assert "each above its prompt" in page and Image.open(tmp_path / "samples.png").height > 96
    assert (tmp_path / measuring.CAPTION_JUDGE / "config.json").is_file()


@pytest.fixture(scope="module")
def published(work, sampled) -> Path:
    with work.publish("pipeline", "1") as out:
        publish.run(recipe_of(publish={"self_contained": True}), work, out)
    return work.root / "pipeline"


def test_the_card_tells_how_to_ask_in_words(published, tmp_path, monkeypatch):
    text = (published / "README.md").read_text()
    assert ModelCard(text).data.pipeline_tag == "text-to-image" and "asked for in words" in text
    usage, alone = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert "prompt=[" in usage and "prompt=" in alone
    monkeypatch.chdir(tmp_path)
    for snippet in (usage, alone):
        for path in re.findall(r'from_pretrained\("([^"]*)"', snippet):
            snippet = snippet.replace(path, str(published.parent / path.partition("/tiny/")[2]))
        exec(compile(snippet, "card", "exec"), {})
    assert Image.open(tmp_path / "sample.png").size == (16, 16)
    seeds = json.loads((published / "samples" / "seeds.json").read_text())
    assert len(seeds["prompts"]) == len(seeds["seeds"]) == 6


def test_export_writes_the_encoder_alone(published, tmp_path):
    export([str(published), str(tmp_path / "out"), "part=text_encoder"])
    cls = find("text_encoders", "byte_transformer")
    made = cls.from_pretrained(tmp_path / "out").eval().encode(["a red circle"])
    loaded = LatentPipeline.from_pretrained(published).text_encoder.encode(["a red circle"])
    assert torch.equal(made.text, loaded.text)


def test_settings_of_words_without_words_are_refused(tmp_path):
    plain = make_recipe(sample={"negative_prompt": "blue"})
    with pytest.raises(ValueError, match="sample.negative_prompt: this line reads no text"):
        check_prompts(plain)
    with pytest.raises(ValueError, match="sample.prompts.* there is no file"):
        check_prompts(recipe_of(sample={"prompts": str(tmp_path / "none.txt")}))
    with pytest.raises(ValueError, match="its tokenizer alone"):
        check_prompts(recipe_of(sample={"negative_prompt": "blue", "guidance": 2.0}))
    with pytest.raises(ValueError, match="trained in this run, and nobody else has it"):
        check_publication(recipe_of(publish={"text_encoder": False}), None, None)
    with pytest.raises(ValueError, match="this line reads no text"):
        check_publication(make_recipe(publish={"text_encoder": "owner/name"}), None, None)


def test_an_encoder_that_others_have_is_left_out_and_named(tmp_path, monkeypatch):
    save_model(tmp_path / "model", "bert", "right", True)
    node = {"kind": "pretrained_text", "path": str(tmp_path / "model"), "tokens": 12, "pooling": "mean"}
    recipe = recipe_of(text={"encoder": node}, publish={"text_encoder": "model"})
    root = tmp_path / "runs" / "tiny"
    make_run(root)
    arguments = {k: v for k, v in text_arguments(recipe.text.spec).items() if k != "pooled_dim"}
    for folder in ("decoder", "tokenizer"):
        randomised(build("tokenizers", MODEL, image_size=16, **arguments), 4).save_pretrained(root / folder)
    make_network(grid=[4]).save_pretrained(root / "generator" / "network")
    (root / "generator" / "class_names.json").write_text('["circle", "square", "triangle", "cross"]')
    made = Workspace(root, Accelerator(cpu=True))
    (root / "text").mkdir()
    encode_text.run(recipe, made, root / "text")
    for name in ("text", "tokenizer"):
        (root / name / NOTE).write_text((root / "decoder" / NOTE).read_text())
    with made.publish("pipeline", "1") as out:
        publish.run(recipe, made, out)
    published = root / "pipeline"
    assert not (published / "text_encoder").exists()
    assert json.loads((published / "model_index.json").read_text())["text"]["path"] == "model"
    (usage,) = re.findall(r"```python\n(.*?)```", (published / "README.md").read_text(), flags=re.DOTALL)
    assert "load_text_encoder(pipe)" in usage
    monkeypatch.chdir(tmp_path)
    path = re.search(r'from_pretrained\("([^"]*)"', usage)[1]
    exec(compile(usage.replace(path, str(published)), "card", "exec"), {})
    assert Image.open(tmp_path / "sample.png").size == (16, 16)
