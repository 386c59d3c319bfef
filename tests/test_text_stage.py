"""Captions from the source through the stage that encodes them to the batches of every training."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pipeline.captions.collecting import collect
from pipeline.captions.table import Captions, CaptionTable, open_captions
from pipeline.checks.images import check_images
from pipeline.checks.recipe import check_recipe
from pipeline.files.shards import shard_file
from pipeline.images.facts import UsedImages, split_facts
from pipeline.images.reading import Images
from pipeline.latents.encoded_images import open_codes
from pipeline.planning.summary import CheckSettings, print_check
from pipeline.recipes.building import reads_captions
from pipeline.recipes.schema import Recipe, load
from pipeline.runs.workspace import Workspace
from stages import encode_dataset, encode_text
from stages import load as load_stage

ENCODER = "{kind: byte_transformer, tokens: 24, width: 16, depth: 1, heads: 2, steps: 3, batch: 4, layers: [0, -1]}"
SHAPES = "{kind: shapes, images: 12, held_out: 5, size: 16}"


def recipe_of(*more: str) -> Recipe:
    settings = [f"data.source={SHAPES}", f"text={{encoder: {ENCODER}, shard: 7, batch: 3}}", "generator.condition=text"]
    return load("digits", [*settings, "sample.guidance=1", *more])


@pytest.fixture(scope="module")
def run_of(tmp_path_factory) -> tuple[Recipe, Path]:
    """A run whose captions are encoded."""
    recipe, root = recipe_of("text.precision=fp32"), tmp_path_factory.mktemp("run")
    make(recipe, root)
    return recipe, root


def make(recipe: Recipe, root: Path, accelerator: Accelerator | None = None) -> None:
    (root / "text").mkdir(exist_ok=True)
    encode_text.run(recipe, Workspace(root, accelerator or Accelerator(cpu=True)), root / "text")


def test_every_distinct_caption_is_encoded_once(run_of):
    recipe, root = run_of
    table, collected = CaptionTable(root / "text"), collect(recipe.data)
    assert table.texts == collected.texts and table.texts[0] == "" and len(set(table.texts)) == len(table)
    assert table.spec == recipe.text.spec and table.counts == [7] * (len(table) // 7) + [len(table) % 7]
    encoder = load_encoder(root)
    made, expected = table.features(torch.arange(len(table))), encoder.encode(table.texts)
    torch.testing.assert_close(made.text, expected.text, atol=2e-5, rtol=0)
    torch.testing.assert_close(made.pooled, expected.pooled, atol=2e-5, rtol=0)
    assert torch.equal(made.text_mask, expected.text_mask) and made.text_mask.dtype == torch.bool
    torch.testing.assert_close(table.empty.text, encoder.encode([""]).text, atol=2e-5, rtol=0)


def load_encoder(root: Path):
    from pipeline.saved_folders import load_component
    from pipeline.text_encoders.byte_transformer import ByteTransformer

    return load_component(ByteTransformer, root / "text" / "encoder").eval()


def test_an_image_has_its_first_caption_or_one_that_its_seed_draws(run_of):
    recipe, root = run_of
    for split in ("train", "held_out"):
        captions, source = Captions(root / "text", split), Images(recipe.data, split).source
        rows = torch.arange(len(source))
        assert len(captions) == len(source)
        assert captions.texts(rows) == [source.captions(row)[0] for row in rows.tolist()]
        drawn = [captions.texts(rows, torch.full_like(rows, seed) + rows) for seed in range(40)]
        for row in rows.tolist():
            assert {texts[row] for texts in drawn} == set(source.captions(row))
        assert captions.texts(rows[2:4], torch.tensor([5, 9])) == [
            captions.texts(rows[2:3], torch.tensor([5]))[0],
            captions.texts(rows[3:4], torch.tensor([9]))[0],
        ]
        one = captions.condition(rows[:2])
        assert (
            one.text.shape == (2, 24, 32)
            and one.labels is None
            and torch.equal(one[1:].text, captions.condition(rows[1:2]).text)
        )


def test_batches_of_images_and_of_codes_carry_the_same_text(run_of, tmp_path):
    recipe, root = run_of
    run = tmp_path / "run"
    shutil.copytree(root, run)
    made_latents(recipe, run)
    captions = open_captions(recipe, run.joinpath, "train", "generator")
    images = Images(recipe.data, "train", captions)
    rows, seeds = torch.tensor([3, 0, 7]), torch.tensor([11, 12, 13])
    for store in (True, False):
        recipe.latents.store = store
        codes = open_codes(run / "latents", recipe, Accelerator(cpu=True), captions)
        batch = codes.batch(rows, seeds)
        batch = batch if store else codes.encoder.encode(batch, None)
        for one, other in ((codes.plain(rows), images.plain(rows)), (batch, images.batch(rows, seeds))):
            assert torch.equal(one.condition.labels, other.condition.labels)
            for name in ("text", "text_mask", "pooled"):
                assert torch.equal(getattr(one.condition, name), getattr(other.condition, name)), name
        assert torch.equal(codes.plain(rows).condition.text, captions.condition(rows).text)
        assert torch.equal(batch.condition.text, captions.condition(rows, seeds).text)
    recipe.latents.store = True
    assert open_codes(run / "latents", recipe, Accelerator(cpu=True)).plain(rows).condition.text is None


def made_latents(recipe: Recipe, run: Path) -> None:
    """Codes by an untrained tokenizer."""
    from pipeline.recipes.building import build_tokenizer

    (run / "joint").mkdir()
    build_tokenizer(recipe).save_pretrained(run / "joint")
    (run / "joint/made_from.json").write_text("{}")
    encode_dataset.run(recipe, Workspace(run, Accelerator(cpu=True)), run / "latents")


def test_a_broken_image_takes_picture_and_caption_of_the_next(tmp_path):
    from PIL import Image

    for number in range(6):
        Image.new("L", (8, 8), 40 * number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"grey {number}")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    (tmp_path / "4.txt").write_text("\n")
    source = f"{{kind: image_folder, path: {tmp_path}, held_out: 0}}"
    recipe = recipe_of(
        f"data.source={source}", "data.tolerate=1", "generator.condition=text", "evaluate.reference=train"
    )
    root = tmp_path / "run"
    root.mkdir()
    make(recipe, root)
    captions = open_captions(recipe, root.joinpath, "train", "generator")
    images, rows = Images(recipe.data, "train", captions), torch.arange(6)
    batch = images.plain(rows)
    assert batch.rows.tolist() == [0, 1, 3, 3, 4, 5] and torch.equal(batch.images[2], batch.images[3])
    assert torch.equal(batch.condition.text, captions.condition(batch.rows).text) and batch.condition.labels is None
    assert captions.texts(batch.rows) == ["grey 0", "grey 1", "grey 3", "grey 3", "", "grey 5"]
    assert torch.equal(batch.condition.text[4], captions.table.empty.text[0])
    made_latents(recipe, root)
    codes = open_codes(root / "latents", recipe, Accelerator(cpu=True), captions)
    assert torch.equal(codes.plain(rows).condition.text, batch.condition.text)


def test_encoding_resumes_and_is_the_same_by_two_processes(run_of, tmp_path):
    recipe, root = run_of
    shutil.copytree(root, tmp_path / "again")
    files = sorted(path for path in (root / "text").glob("*.safetensors"))
    kept, gone = shard_file(tmp_path / "again/text", 0, "captions"), shard_file(tmp_path / "again/text", 1, "captions")
    time = kept.stat().st_mtime_ns
    gone.unlink()
    make(recipe, tmp_path / "again")
    assert kept.stat().st_mtime_ns == time
    assert len(files) > 4 and all(
        (tmp_path / "again/text" / file.name).read_bytes() == file.read_bytes() for file in files
    )

    class Process:
        num_processes, device, is_main_process = 2, torch.device("cpu"), True

        def wait_for_everyone(self) -> None:
            pass

    (tmp_path / "two").mkdir()
    for index in range(2):
        process = Process()
        process.process_index, process.is_main_process = index, index == 0
        make(recipe, tmp_path / "two", process)
    one, two = CaptionTable(root / "text"), CaptionTable(tmp_path / "two/text")
    numbers = torch.arange(len(one))
    torch.testing.assert_close(one.features(numbers).text, two.features(numbers).text, atol=2e-5, rtol=0)


def test_a_table_that_is_not_whole_is_refused(run_of, tmp_path):
    recipe, root = run_of
    shutil.copytree(root / "text", tmp_path / "text")
    with pytest.raises(ValueError, match="made with stored .*fp32.*, not .*bf16.*; delete it"):
        changed = recipe_of("text.precision=bf16")
        encode_text.run(changed, Workspace(tmp_path, Accelerator(cpu=True)), tmp_path / "text")
    shard_file(tmp_path / "text", 1, "captions").unlink()
    with pytest.raises(ValueError, match="captions_00001.safetensors is missing"):
        CaptionTable(tmp_path / "text")
    with pytest.raises(ValueError, match="run the stage encode-text"):
        CaptionTable(tmp_path)


def test_features_that_do_not_fit_are_named_by_their_caption(run_of, tmp_path):
    recipe, root = run_of
    encoder = load_encoder(root)
    with torch.no_grad():
        encoder.norm.weight.fill_(1e6)
    recipe = recipe_of("text.precision=fp16")
    with pytest.raises(FloatingPointError, match="of the caption 'red' are not finite; set text.precision=fp32"):
        encode_text.encode(encoder, ["red"], recipe)


def test_stages_read_text_where_something_reads_it():
    recipe = recipe_of()
    artefacts = ("tokenizer", "joint", "latents", "generator", "decoder", "samples", "report", "pipeline")
    assert [reads_captions(recipe, each) for each in artefacts] == [False, False, False] + [True] * 5
    by_class = recipe_of("generator.condition=class")
    assert not any(reads_captions(by_class, each) for each in artefacts)
    assert not any(reads_captions(load("digits"), each) for each in artefacts)


def test_what_the_stage_depends_on():
    uses = [encode_text.uses(recipe_of(*more)) for more in ([], ["text.batch=9"], ["text.encoder.steps=4"], ["seed=3"])]
    from pipeline.runs.workspace import fingerprint

    keys = [fingerprint(part) for part in uses]
    assert keys[0] == keys[1] and len(set(keys)) == 3
    assert load_stage("encode_text").IMAGES == ("captions",)


def test_captions_that_change_make_the_text_anew_and_no_images(tmp_path):
    from PIL import Image

    for number in range(4):
        Image.new("L", (8, 8), 40 * number).save(tmp_path / f"{number}.png")
    (tmp_path / "1.txt").write_text("one")
    data = recipe_of(f"data.source={{kind: image_folder, path: {tmp_path}}}").data
    before = UsedImages(data, (), captions=True)
    (tmp_path / "1.txt").write_text("uno")
    after = UsedImages(data, (), captions=True)
    assert before.of(["train", "held_out"]) == after.of(["train", "held_out"])
    assert before.of(["captions"]) != after.of(["captions"])
    assert after.change_since([{"images": before.of(["captions"])}]) == "the captions have changed"
    with pytest.raises(ValueError, match="the captions have changed while this command ran"):
        before.check_unchanged(["captions"])


def test_images_without_captions_are_refused_before_anything_is_made():
    recipe = recipe_of("data.source={kind: digits}")
    facts = {split: split_facts(recipe.data, split, captions=True) for split in ("train", "held_out")}
    with pytest.raises(ValueError, match="data.source: its images have no captions, .* or set text=null"):
        check_images(recipe, facts)
    with pytest.raises(ValueError, match="no captions"):
        collect(recipe.data)


def test_rows_without_captions_are_counted(tmp_path, caplog):
    from PIL import Image

    for number in range(4):
        Image.new("L", (8, 8), 40 * number).save(tmp_path / f"{number}.png")
    (tmp_path / "1.txt").write_text("one")
    collected = collect(recipe_of(f"data.source={{kind: image_folder, path: {tmp_path}, held_out: 0}}").data)
    assert collected.texts == ["", "one"] and collected.rows["train"].without == 3
    assert "3 of 4 images of the split train have no caption: theirs is empty" in caplog.text


def test_a_wrong_encoder_is_refused_with_its_place():
    for change, message in [
        ("text.encoder.kind=bytes", "text.encoder: there is no kind 'bytes'; there are: "),
        ("text.encoder.width=17", r"text.encoder.width is 17; give a multiple of heads"),
        ("text.encoder.layers=[4]", "text.encoder.layers: there is no layer 4 of 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_recipe(recipe_of(change))


def test_check_tells_what_captions_take(capsys):
    data = "data.source={kind: shapes, images: 40, held_out: 40, size: 16}"
    print_check(recipe_of("generator.condition=class", "text.precision=fp32", data), CheckSettings())
    told = capsys.readouterr().out
    assert "ByteTransformer, 24 tokens of 32 channels (2 layers of 16), and a vector of 16 for each" in told
    assert re.search(r"text 3\.[12]\d* kB per distinct caption", told)


@pytest.mark.parametrize("null", ["learned", "empty"])
def test_a_generator_is_trained_by_captions_and_knows_the_empty_one(run_of, tmp_path, null):

    from pipeline.networks.diffusion_transformer import DiffusionTransformer
    from stages import train_generator

    settings = [f"generator.network.text_null={null}", "generator.network.depth=1", "generator.network.width=32"]
    recipe = recipe_of("text.precision=fp32", *settings, "generator.loop={steps: 2, batch: 4, lr: {network: 1.0e-3}}")
    shutil.copytree(run_of[1] / "text", tmp_path / "text")
    made_latents(recipe, tmp_path)
    for name in ("text", "latents"):
        (tmp_path / name / "made_from.json").write_text("{}")
    work = Workspace(tmp_path, Accelerator(cpu=True))
    train_generator.run(recipe, work, tmp_path / "generator")
    network = DiffusionTransformer.from_pretrained(tmp_path / "generator" / "network").eval()
    assert network.config.num_classes == 0 and network.config.text_tokens == recipe.text.spec.tokens
    table = CaptionTable(tmp_path / "text")
    asked = (torch.randn(1, *network.state_shape), torch.tensor([0.5]))
    with torch.no_grad():
        same = torch.equal(network(*asked, table.empty), network(*asked))
    assert same == (null == "empty")
