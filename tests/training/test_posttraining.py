"""Post-training of a decoder: codes stay what they are, pairs are the generator's, the best decoder is kept."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from support.tiny_pipeline import randomised
from torch import Tensor

from pipeline.checks.recipe import check_recipe
from pipeline.code import Code
from pipeline.components import find, structure
from pipeline.critics.patch import Patch
from pipeline.draws import StepDraws
from pipeline.files.shards import MANIFEST, shard_file
from pipeline.images.reading import Images
from pipeline.images.stored_pixels import as_saved
from pipeline.latents.store import LatentStore
from pipeline.losses.pixel import Pixel
from pipeline.recipes.building import build_network, build_tokenizer
from pipeline.recipes.files import merge
from pipeline.recipes.post_training import PostTraining
from pipeline.recipes.sampling import EarlierDecoder
from pipeline.recipes.schema import Recipe, load, settings
from pipeline.recipes.tokenizer_training import Phase, TokenizerTraining
from pipeline.runs.finished import tokenizer_of
from pipeline.runs.milestones import chosen_decoder, milestone
from pipeline.runs.workspace import NOTE, OWNER, Workspace, fingerprint
from pipeline.samplers.guidance import Guidance
from pipeline.sampling.many_images import assemble
from pipeline.saved_folders import load_component
from pipeline.tokenizers.base import Tokenizer
from pipeline.tokenizers.latent_vit import LatentViT
from pipeline.training.kept_decoder import KeptDecoder
from pipeline.training.overfitting import read_previews
from pipeline.training.pairs import Originals, PairBatch, Pairs, make_pairs, rows_of_pairs
from pipeline.training.phase_parts import carry_over
from pipeline.training.posttraining import DecoderPlayer, DecoderTraining
from stages import encode_dataset, sample, train_jointly, train_tokenizer
from stages import posttrain_decoder as stage

VQ = {"kind": "vector_quantize", "dim": 4, "vocab": 16, "learn": "ema", "start": "kmeans", "restart": 0.1}
CONV = {"kind": "conv_autoencoder", "width": 8, "multipliers": [1, 2, 2], "blocks": 1, "groups": 4}
TITOK = {"kind": "titok", "tokens": 6, "width": 16, "depth": 1, "heads": 2, "patch_size": 4, "bottleneck": VQ}
BITS = {
    **{"kind": "merging_vit", "tokens": 6, "width": 12, "depth": 1, "heads": 1, "patch_size": 4},
    **{"merge_after": [], "split_after": [], "rotary_axes": [4, 4, 4]},
    "bottleneck": {"kind": "bernoulli", "dim": 12, "bits": 5},
}
SIZES = {"depth": 1, "width": 16, "heads": 2}
LINES: dict[str, tuple[dict[str, Any], str, str]] = {  # tokenizer, network, objective
    "vq": (CONV | {"bottleneck": VQ}, "causal_transformer", "next_token"),
    "kl": (CONV | {"bottleneck": {"kind": "gaussian", "dim": 3}}, "diffusion_transformer", "flow_matching"),
    "titok": (TITOK, "bidirectional_transformer", "masked_token"),
    "bits": (BITS, "bit_diffusion_transformer", "bit_diffusion"),
    "stock": ({"kind": "pretrained"}, "diffusion_transformer", "flow_matching"),
}
TERMS = {"next_token": "next_token", "flow_matching": "flow", "masked_token": "masked_token", "bit_diffusion": "flip"}
PHASE = {"train": "decoder", "weights": {"pixel": 1.0}, "loop": {"steps": 4, "batch": 8, "lr": {"tokenizer": 1e-3}}}
PART = {"pairs": 24, "held_out": 8, "preserve": 0.5, "check_every": 2, "patience": 2, "phase": PHASE}


def recipe_of(kind: str, model: dict[str, Any]) -> Recipe:
    network, objective = LINES[kind][1:]
    generator = {
        "network": SIZES | {"kind": network},
        "objective": {"kind": objective},
        "weights": {TERMS[objective]: 1.0},
        "loop": {"steps": 1, "lr": {"network": 1e-3}},
    }
    values = {
        "name": "tiny",
        "data": {"source": {"kind": "digits"}, "size": 16},
        "tokenizer": {"model": model, "start": "anywhere"},
        "generator": generator,
        "latents": {"batch": 256, "shard": 10},
        "sample": {"steps": None if kind == "vq" else 2, "guidance": 2.0, "batch": 7},
        "posttrain": PART,
    }
    return structure(Recipe, values)


def changed(recipe: Recipe, **posttrain: Any) -> Recipe:
    return replace(recipe, posttrain=structure(PostTraining, merge(PART, posttrain)))


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A function from the name of a line to its recipe and its run, up to the generator; all weights are drawn."""
    made: dict[str, tuple[Recipe, Workspace]] = {}

    def line(kind: str) -> tuple[Recipe, Workspace]:
        if kind not in made:
            made[kind] = make_line(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return line


def make_line(kind: str, root: Path) -> tuple[Recipe, Workspace]:
    model = LINES[kind][0]
    if kind == "stock":
        torch.manual_seed(0)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        vae = AutoencoderKL(latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, **blocks)
        vae.save_pretrained(root / "vae")
        model = model | {"path": str(root / "vae")}
    recipe, work = recipe_of(kind, model), Workspace(root / "run", Accelerator(cpu=True))
    check_recipe(recipe)
    folders = {name: work.root / name for name in ("joint", "latents", "generator")}
    for folder in folders.values():
        folder.mkdir(parents=True)
        (folder / NOTE).write_text("{}")
    tokenizer = build_tokenizer(recipe)
    (tokenizer if kind == "stock" else randomised(tokenizer, 1)).save_pretrained(folders["joint"])
    long = replace(recipe, latents=replace(recipe.latents, shard=8192))
    encode_dataset.run(long, work, folders["latents"])
    objective = check_recipe(recipe).generator.objective
    network = build_network(recipe, LatentStore(folders["latents"]).spec, 10, objective)
    randomised(network, 2).save_pretrained(folders["generator"] / "network")
    objective.save_pretrained(folders["generator"] / "objective")
    (folders["generator"] / "class_names.json").write_text(json.dumps([str(digit) for digit in range(10)]))
    return recipe, work


def originals(store: LatentStore, recipe: Recipe) -> Originals:
    return Originals(store, Images(recipe.data, "train"), recipe)


def tokenizer_in(folder: Path, recipe: Recipe) -> Tokenizer:
    return load_component(find("tokenizers", recipe.tokenizer.model["kind"]), folder).eval()


def values(code: Code) -> Tensor:
    return code.z if code.ids is None else code.ids


def equal(one: Path, other: Path, recipe: Recipe) -> bool:
    """Whether two folders hold the same weights and buffers, to the bit."""
    states = [tokenizer_in(folder, recipe).state_dict() for folder in (one, other)]
    return all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def run(recipe: Recipe, work: Workspace, out: Path) -> dict[str, Any]:
    """The stage into `out`; its record."""
    out.mkdir(exist_ok=True)
    stage.run(recipe, work, out)
    return json.loads((out / "posttraining.json").read_text())


@pytest.mark.parametrize("kind", LINES)
def test_the_decoder_alone_moves_and_every_code_is_what_it_was(kind, lines, tmp_path):
    recipe, work = lines(kind)
    record = run(recipe, work, tmp_path / "decoder")
    assert record["kept_step"] > 0 and record["error_after"] < record["error_before"]
    before = tokenizer_in(work.artefact("latents") / "tokenizer", recipe)
    after = tokenizer_in(tmp_path / "decoder", recipe)
    decoder = {id(parameter) for parameter in before.trainable("decoder")}
    free = {name for name, parameter in before.named_parameters() if id(parameter) in decoder}
    states = before.state_dict(), after.state_dict()
    moved = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert moved and moved <= free and len(moved) > len(free) // 2
    images = Images(recipe.data, "train")
    for rows in torch.arange(len(images)).split(256):
        codes = [tokenizer.encode(images.plain(rows).images) for tokenizer in (before, after)]
        assert torch.equal(*map(values, codes))
    assert not torch.equal(*(tokenizer.decode(codes[0]) for tokenizer in (before, after)))


@pytest.mark.parametrize("kind", ["vq", "kl", "bits"])
@torch.no_grad()
def test_pairs_of_which_all_is_preserved_are_plain_reconstructions(kind, lines, tmp_path):
    recipe, work = lines(kind)
    store, source = LatentStore(work.artefact("latents")), work.artefact("latents") / "tokenizer"
    pipe, images = assemble(recipe, source, work.artefact("generator")), Images(recipe.data, "train")
    rows, _ = rows_of_pairs(recipe.posttrain, len(store), recipe.seed)
    stored, places = store.plain(rows), torch.arange(24)
    for route in ("tokens", "reencode"):
        whole = changed(recipe, preserve=1.0, route=route)
        make_pairs(whole, pipe, originals(store, whole), tmp_path / route, work.accelerator)
        pair = Pairs(tmp_path / route, originals(store, whole), whole, 0, 24).plain(places)
        expected = stored.code
        if route == "reencode":
            expected = pipe.tokenizer.encode(as_saved(pipe.decode(stored.code)))
        assert torch.equal(pair.images, images.plain(rows).images)
        assert torch.equal(pair.condition.labels, stored.condition.labels)
        torch.testing.assert_close(values(pair.code), values(expected), atol=2e-3, rtol=2e-3)
        assert torch.equal(values(pair.code), values(stored.code)) == (route == "tokens")


def test_pairs_are_of_these_codes_and_the_codes_of_these_images(lines, tmp_path):
    recipe, work = lines("kl")
    store, source = LatentStore(work.artefact("latents")), work.artefact("latents") / "tokenizer"
    pipe = assemble(recipe, source, work.artefact("generator"))
    make_pairs(recipe, pipe, originals(store, recipe), tmp_path / "pairs", work.accelerator)
    Pairs(tmp_path / "pairs", originals(store, recipe), recipe, 0, 24)
    with pytest.raises(ValueError, match="the codes in .*latents are not of the recipe's images; encode them again"):
        Originals(store, Images(recipe.data, "held_out"), recipe)
    store.manifest["seed"] += 1
    with pytest.raises(ValueError, match="the pairs in .*pairs are not of the codes in .*latents; delete them"):
        Pairs(tmp_path / "pairs", originals(store, recipe), recipe, 0, 24)


class OneOf:
    """What `make_pairs` asks of an accelerator, as process `rank` of several."""

    device = torch.device("cpu")

    def __init__(self, rank: int, ranks: int):
        self.process_index, self.num_processes, self.is_main_process = rank, ranks, rank == 0

    def wait_for_everyone(self) -> None:
        pass


def test_pairs_are_the_same_however_they_are_made_and_finished_shards_are_kept(lines, tmp_path):
    recipe, work = lines("vq")
    store, source = LatentStore(work.artefact("latents")), work.artefact("latents") / "tokenizer"
    pipe = assemble(recipe, source, work.artefact("generator"))
    make_pairs(recipe, pipe, originals(store, recipe), tmp_path / "one", OneOf(0, 1))
    other = replace(recipe, sample=replace(recipe.sample, batch=3))
    make_pairs(other, pipe, originals(store, other), tmp_path / "two", OneOf(0, 2))
    assert [shard_file(tmp_path / "two", number).exists() for number in range(3)] == [True, False, True]
    make_pairs(other, pipe, originals(store, other), tmp_path / "two", OneOf(1, 2))
    one, two = (LatentStore(tmp_path / name).plain(torch.arange(24)) for name in ("one", "two"))
    assert torch.equal(one.code.ids, two.code.ids) and torch.equal(one.condition.labels, two.condition.labels)
    kept = shard_file(tmp_path / "two", 0).stat().st_mtime_ns
    shard_file(tmp_path / "two", 1).unlink()
    make_pairs(other, pipe, originals(store, other), tmp_path / "two", OneOf(0, 1))
    assert shard_file(tmp_path / "two", 0).stat().st_mtime_ns == kept
    assert torch.equal(LatentStore(tmp_path / "two").plain(torch.arange(24)).code.ids, one.code.ids)
    with pytest.raises(ValueError, match="made with preserve 0.5, not 0.7"):
        make_pairs(changed(recipe, preserve=0.7), pipe, originals(store, recipe), tmp_path / "two", OneOf(0, 1))


def test_pairs_are_the_generator_s_version_of_the_codes(lines, tmp_path):
    recipe, work = lines("vq")
    store, source = LatentStore(work.artefact("latents")), work.artefact("latents") / "tokenizer"
    pipe = assemble(recipe, source, work.artefact("generator"))
    stored = store.plain(rows_of_pairs(recipe.posttrain, len(store), recipe.seed)[0]).code.ids
    shares = []
    for preserve in (0.2, 0.8):
        folder = tmp_path / f"{preserve}"
        made_of = changed(recipe, preserve=preserve, route="tokens")
        make_pairs(made_of, pipe, originals(store, made_of), folder, OneOf(0, 1))
        made = LatentStore(folder).plain(torch.arange(24)).code.ids
        shares.append(float((made == stored).float().mean()))
    assert 0.2 < shares[0] < shares[1] - 0.3 and shares[1] < 1


def test_pairs_of_the_decoder_before_are_taken_over_where_all_that_makes_them_is_the_same(lines, tmp_path, monkeypatch):
    recipe, work = lines("kl")
    first, decoder = run(recipe, work, tmp_path / "decoder"), work.root / "decoder"
    (tmp_path / "decoder").rename(decoder)

    def never(*of: Any) -> None:
        raise AssertionError("pairs are made anew")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.pairs.regenerate", never)
        other = run(changed(recipe, rehearsal=0.5), work, tmp_path / "other")
        assert other["cost"]["seconds_of_pairs"] == first["cost"]["seconds_of_pairs"]
        for name in (MANIFEST, shard_file(decoder, 2).name):
            assert (tmp_path / "other" / "pairs" / name).read_bytes() == (decoder / "pairs" / name).read_bytes()
        with pytest.raises(AssertionError, match="anew"):
            run(changed(recipe, preserve=0.7), work, tmp_path / "preserve")
        weights = next((work.root / "generator" / "network").glob("*.safetensors"))
        content = weights.read_bytes()
        os.utime(weights)
        run(changed(recipe, rehearsal=0.5), work, tmp_path / "touched")
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # others, as a new training leaves them
        with pytest.raises(AssertionError, match="anew"):
            run(changed(recipe, rehearsal=0.5), work, tmp_path / "generator")
        weights.write_bytes(content)
    shutil.rmtree(decoder)


def test_what_it_cost_is_recorded(lines, tmp_path):
    recipe, work = lines("vq")
    record = run(recipe, work, tmp_path / "decoder")
    assert record["cost"]["network_evaluations_of_pairs"] == 24 * 16
    assert record["cost"]["seconds_of_pairs"] > 0 and record["cost"]["seconds_of_training"] > 0
    assert record["critic"] == "none" and [check["step"] for check in record["checks"]] == [0, 2, 4]


def test_the_best_decoder_is_kept_and_training_stops_when_none_is_better(lines, tmp_path):
    recipe, work = lines("kl")
    idle = merge(PHASE, {"loop": {"steps": 100, "lr": {"tokenizer": 0.0}}})
    record = run(changed(recipe, phase=idle), work, tmp_path / "idle")
    assert record["stopped_early"] and record["steps"] == 4 and record["kept_step"] == 0
    assert equal(tmp_path / "idle", work.root / "latents" / "tokenizer", recipe)
    wild = merge(PHASE, {"loop": {"steps": 40, "ema": 0.0, "lr": {"tokenizer": 0.3}}})
    record = run(changed(recipe, phase=wild, check_every=1), work, tmp_path / "wild")
    errors = [check["error"] for check in record["checks"]]
    assert record["stopped_early"] and min(errors) == record["error_after"] and errors[-1] > min(errors)
    assert len(errors) - 1 - errors.index(min(errors)) == 2
    part, store = changed(recipe, phase=wild).posttrain, LatentStore(work.artefact("latents"))
    held_out = Pairs(tmp_path / "wild" / "pairs", originals(store, recipe), recipe, 16, 8)
    again = KeptDecoder(part, {"pixel": Pixel()}, held_out, tmp_path / "again", work.accelerator)
    kept = DecoderPlayer(tokenizer_in(tmp_path / "wild", recipe))
    assert again.error(kept) == pytest.approx(record["error_after"], rel=1e-5)


def test_a_stage_that_goes_on_ends_with_the_same_weights(lines, tmp_path):
    recipe, work = lines("titok")
    longer = changed(recipe, phase=merge(PHASE, {"loop": {"steps": 8, "save_every": 3}}), patience=9)
    seen = changed(recipe, phase=merge(PHASE, {"loop": {"steps": 8, "save_every": 3, "preview_every": 4}}), patience=9)
    short = changed(recipe, phase=merge(PHASE, {"loop": {"steps": 4, "save_every": 3}}), patience=9)
    straight = run(seen, work, tmp_path / "straight")
    rows = read_previews(tmp_path / "straight" / "posttraining")
    errors = {check["step"]: check["error"] for check in straight["checks"]}
    assert [(row.step, pytest.approx(row.held_out, 1e-4)) for row in rows] == [(step, errors[step]) for step in (4, 8)]
    assert (work.root / "preview" / "decoder" / "step_00000008.png").is_file()
    run(short, work, tmp_path / "stopped")
    checkpoints = tmp_path / "stopped" / "posttraining" / "checkpoints"
    (checkpoints / "step_00000004").rename(tmp_path / "lost")  # it goes on from step 3, before the last check
    resumed = run(longer, work, tmp_path / "stopped")
    assert [(check["step"], check["error"]) for check in resumed["checks"]] == [
        (check["step"], check["error"]) for check in straight["checks"]
    ]
    assert equal(tmp_path / "straight", tmp_path / "stopped", recipe)


def test_the_tokenizer_s_critic_is_carried_over(lines, tmp_path, caplog):
    recipe, work = lines("kl")
    adversary = {"critic": {"kind": "patch", "width": 8, "layers": 1}}
    first = {
        "adversary": adversary,
        "weights": {"pixel": 1.0, "kl": 1e-6, "adversarial": 0.1},
        "loop": {"steps": 2, "batch": 8, "lr": {"tokenizer": 1e-4, "critic": 1e-3}},
    }
    part = {"model": recipe.tokenizer.model, "phases": {"main": first}}
    recipe = replace(recipe, tokenizer=structure(TokenizerTraining, part))
    root = Workspace(tmp_path / "run", work.accelerator)
    for name in ("latents", "generator"):
        (root.root / name).parent.mkdir(exist_ok=True)
        (root.root / name).symlink_to(work.root / name)
    (root.root / "tokenizer").mkdir()
    train_tokenizer.run(recipe, root, root.root / "tokenizer")
    (root.root / "tokenizer" / NOTE).write_text("{}")
    (root.root / "joint").mkdir()
    train_jointly.run(recipe, root, root.root / "joint")
    (root.root / "joint" / NOTE).write_text("{}")
    saved = root.root / "joint" / "critic"
    contested = merge(
        PHASE,
        {"adversary": adversary | {"carried": True}, "weights": {"adversarial": 0.1}, "loop": {"lr": {"critic": 0.0}}},
    )
    part = changed(recipe, phase=contested)
    check_recipe(part)
    assert run(part, root, tmp_path / "decoder")["critic"] == "carried over"
    anew = changed(recipe, phase=merge(contested, {"adversary": {"carried": False}}))
    assert run(anew, root, tmp_path / "anew")["critic"] == "fresh"
    critic, carried = carry_over(Patch(8, 1), saved)
    assert carried and torch.equal(critic.main[0].weight, Patch.from_pretrained(saved).main[0].weight)
    with caplog.at_level(logging.WARNING):
        for fresh, folder, words in ((Patch(8, 2), saved, "another make"), (Patch(8, 1), None, "without a critic")):
            assert carry_over(fresh, folder) == (fresh, False) and words in caplog.records[-1].getMessage()


def test_what_makes_a_decoder_stale(lines):
    recipe, _ = lines("kl")

    def hashed(of: Recipe) -> str:
        return fingerprint(stage.uses(of))

    assert hashed(changed(recipe, preserve=0.6)) != hashed(recipe)
    assert hashed(replace(recipe, sample=replace(recipe.sample, guidance=Guidance(3.0)))) != hashed(recipe)
    assert hashed(replace(recipe, sample=replace(recipe.sample, images=3, batch=2))) == hashed(recipe)
    plain = replace(recipe, posttrain=None)
    assert hashed(replace(plain, sample=replace(recipe.sample, guidance=Guidance(3.0)))) == hashed(plain)


MISTAKES = {
    "held_out=0": "posttrain.held_out is 0, and their error chooses the decoder; .*set keep=last",
    "milestones=[401]": "posttrain.milestones: there is no step 401; give steps from 1 to 400",
    "keep=first": "posttrain.keep: 'first' is not one of best, last",
    "route=pixels": "posttrain.route: 'pixels' is not one of reencode, tokens",
    "preserve=0": "posttrain.preserve is 0; give a fraction, above 0",
    "rehearsal=1": "posttrain.rehearsal is 1; give a fraction, 0 or more and below 1",
    "held_out=1000": "posttrain.held_out is 1000 of 1000 pairs",
    "patience=0": "posttrain.patience is 0; give 1 or more",
    "phase.train=all": "posttrain.phase.train is 'all', .* set train=decoder",
    "phase.weights.commit=1": "posttrain.phase.weights.commit: there is no loss term",
    "phase.losses.pixel=null": "posttrain.phase.weights.pixel: there is no loss term 'pixel'.* leaves it out",
    "phase.losses=null": "posttrain.phase.losses is empty",
    "phase.losses.ids={kind: proxy_codes, path: here}": "posttrain.phase.losses.ids: .* does not compare images",
    "phase.loop.lr.critic=1": "posttrain.phase.loop.lr.critic: there is no player",
    "phase.adversary={critic: {kind: patch}}": "posttrain.phase.adversary.critic needs images of 24 pixels",
}


@pytest.mark.parametrize("override, message", MISTAKES.items())
def test_planted_mistakes_stop_at_load(override, message):
    with pytest.raises(ValueError, match=message) as error:
        check_recipe(load("digits_robust_ar", [f"posttrain.{override}"]))
    assert "\n" not in str(error.value)


def test_a_decoder_that_post_training_does_not_keep_is_one_line():
    milestones, chosen = "posttrain.milestones=[100]", "sample.decoder.step=200"
    check_recipe(load("digits_robust_ar", [milestones, "sample.decoder={step: 100}"]))
    for overrides, words in (
        ([milestones, chosen], r"decoder.step=200 is not kept .* set posttrain.milestones=\[100, 200\]"),
        (["posttrain=null", chosen], "^sample.decoder is one of post-training, and posttrain is null"),
    ):
        with pytest.raises(ValueError, match=words):
            check_recipe(load("digits_robust_ar", overrides))


def test_rehearsal_takes_codes_of_the_view_that_pairs_are_of():
    crops = ["latents.crops=[1.1]", "posttrain.view=center"]
    check_recipe(load("digits_robust_ar", ["posttrain.view=center"]))
    check_recipe(load("digits_robust_ar", [*crops, "posttrain.rehearsal=0"]))
    with pytest.raises(ValueError, match="posttrain.rehearsal takes stored codes, and those are of crops"):
        check_recipe(load("digits_robust_ar", crops))


def test_a_fixed_length_keeps_the_last_weights_and_milestones_whatever_the_errors(lines, tmp_path):
    recipe, work = lines("kl")
    wild = merge(PHASE, {"loop": {"steps": 6, "ema": 0.0, "lr": {"tokenizer": 0.3}}})
    part = {"phase": wild, "keep": "last", "check_every": 1, "patience": 1}
    record = run(changed(recipe, **part, milestones=[2, 4]), work, tmp_path / "long")
    errors = [check["error"] for check in record["checks"]]
    assert len(errors) == 7 and record["kept_step"] == record["steps"] == 6 and not record["stopped_early"]
    assert record["error_after"] == errors[-1] > min(errors)
    short = merge(wild, {"loop": {"steps": 4}})
    shorter = run(changed(recipe, **part | {"phase": short}), work, tmp_path / "short")
    assert shorter["milestones"] == [] and not (tmp_path / "short" / "milestones").exists()
    assert equal(milestone(tmp_path / "long", 4), tmp_path / "short", recipe)
    assert not equal(milestone(tmp_path / "long", 2), tmp_path / "short", recipe)
    chosen = replace(recipe, sample=replace(recipe.sample, decoder=EarlierDecoder(4)))
    assert chosen_decoder(chosen, tmp_path / "long") == milestone(tmp_path / "long", 4)
    assert chosen_decoder(recipe, tmp_path / "long") == tmp_path / "long"


def test_without_held_out_pairs_nothing_is_measured(lines, tmp_path):
    recipe, work = lines("vq")
    record = run(changed(recipe, held_out=0, keep="last"), work, tmp_path / "decoder")
    assert [check["error"] for check in record["checks"]] == [None] * 3 and record["kept_step"] == 4
    assert record["error_before"] is record["error_after"] is None
    assert not equal(tmp_path / "decoder", work.root / "latents" / "tokenizer", recipe)


def test_samples_and_the_card_are_of_the_decoder_that_a_recipe_chooses(lines, tmp_path):
    recipe, work = lines("kl")
    part = changed(recipe, keep="last", milestones=[2], phase=merge(PHASE, {"loop": {"lr": {"tokenizer": 0.1}}}))
    root = Workspace(tmp_path / "run", work.accelerator)
    for name in ("latents", "generator", "joint"):
        (root.root / name).parent.mkdir(exist_ok=True)
        (root.root / name).symlink_to(work.root / name)
    run(part, root, root.root / "decoder")
    (root.root / "decoder" / NOTE).write_text("{}")
    made = {}
    for step in (None, 2):
        decoder = None if step is None else EarlierDecoder(step)
        chosen = replace(part, sample=replace(part.sample, images=2, decoder=decoder))
        (root.root / OWNER).write_text(settings(chosen))
        sample.run(chosen, root, tmp_path / f"{step}")
        made[step] = (tmp_path / f"{step}" / "000000.png").read_bytes()
        assert tokenizer_of(root.root) == chosen_decoder(chosen, root.root / "decoder")
        assert fingerprint(stage.uses(chosen)) == fingerprint(stage.uses(part))
    assert made[None] != made[2]
    assert fingerprint(sample.uses(chosen)) != fingerprint(sample.uses(part))


@torch.no_grad()
def test_the_view_of_a_pair_is_the_stored_one_or_the_plain_centre(lines, tmp_path):
    recipe, work = lines("kl")
    latents = replace(recipe.latents, crops=(1.5,), posterior="mode", precision="fp32", shard=8192)
    recipe, folder = replace(recipe, latents=latents), tmp_path / "latents"
    encode_dataset.run(recipe, work, folder)
    pipe = assemble(recipe, folder / "tokenizer", work.artefact("generator"))
    store, images = LatentStore(folder), Images(recipe.data, "train")
    rows, _ = rows_of_pairs(recipe.posttrain, len(store), recipe.seed)
    for view, crops in (("stored", (1.5,)), ("center", ())):
        of_view = replace(changed(recipe, preserve=1.0, route="tokens", view=view), latents=latents)
        made_of = originals(store, of_view)
        make_pairs(of_view, pipe, made_of, tmp_path / view, work.accelerator)
        pair = Pairs(tmp_path / view, made_of, of_view, 0, 24).plain(torch.arange(24))
        expected = next(images.views(rows, crops)).images
        assert torch.equal(pair.images, expected)
        torch.testing.assert_close(pair.code.z, pipe.tokenizer.encode(expected).z, atol=2e-3, rtol=2e-3)


def test_a_decoder_leaves_out_branches_in_training_alone():
    neck = {"kind": "vector_quantize", "dim": 4, "vocab": 16}
    tokenizer = randomised(LatentViT(16, neck, width=16, depth=3, heads=2, patch_size=4, drop_path=0.9), 1)
    player, code = DecoderPlayer(tokenizer), Code(ids=torch.randint(16, (8, 16)))
    draws = StepDraws(0, 3, slice(0, 8), 8)
    whole = player.eval()(code).images
    assert torch.equal(player(code, None, draws).images, whole)
    dropped = player.train()(code, None, draws).images
    assert torch.equal(player(code, None, draws).images, dropped) and not torch.allclose(dropped, whole)
    task = DecoderTraining(tokenizer, structure(Phase, PHASE), {"pixel": Pixel()})
    task.players["tokenizer"].train()
    _, terms = next(task.turns(PairBatch(torch.zeros(8, 3, 16, 16), code), draws, 3))
    assert terms["pixel"].item() == pytest.approx(dropped.abs().mean().item(), rel=1e-5)


def test_images_come_again_where_pairs_are_more_and_are_made_anew(lines, tmp_path):
    recipe, work = lines("vq")
    many = changed(recipe, pairs=1500, held_out=100, preserve=0.1, route="tokens")
    rows, rounds = rows_of_pairs(many.posttrain, 1438, recipe.seed)
    assert not set(rows[:1400].tolist()) & set(rows[1400:].tolist()) and len(set(rows[1400:].tolist())) == 100
    assert torch.equal(rows[1338:1400], rows[:62]) and len(set(rows[:1338].tolist())) == 1338
    assert rounds.tolist() == [0] * 1338 + [1] * 62 + [0] * 100
    store, source = LatentStore(work.artefact("latents")), work.artefact("latents") / "tokenizer"
    pipe = assemble(recipe, source, work.artefact("generator"))
    make_pairs(many, pipe, originals(store, many), tmp_path / "pairs", OneOf(0, 1))
    pairs = LatentStore(tmp_path / "pairs")
    first, again = (pairs.plain(torch.arange(start, start + 62)).code.ids for start in (0, 1338))
    assert float((first == again).float().mean()) < 0.5


def test_a_share_of_a_batch_rehearses_the_image_s_own_code(lines, tmp_path):
    recipe, work = lines("vq")
    store, source = LatentStore(work.artefact("latents")), work.artefact("latents") / "tokenizer"
    pipe = assemble(recipe, source, work.artefact("generator"))
    mixed = changed(recipe, preserve=0.1, route="tokens", rehearsal=0.25)
    make_pairs(mixed, pipe, originals(store, mixed), tmp_path / "pairs", OneOf(0, 1))
    pairs = Pairs(tmp_path / "pairs", originals(store, mixed), mixed, 0, 16)
    indices, seeds = torch.arange(16), torch.arange(16)
    batch, made = pairs.batch(indices, seeds), pairs.plain(indices)
    own = store.plain(pairs.rows[:16]).code.ids
    rehearsed = (batch.code.ids == own).all(dim=1)
    assert torch.equal(batch.images, made.images) and 1 <= int(rehearsed.sum()) <= 8
    assert torch.equal(batch.code.ids[~rehearsed], made.code.ids[~rehearsed])
    assert torch.equal(pairs.batch(indices[8:], seeds[8:]).code.ids, batch.code.ids[8:])
    never = Pairs(tmp_path / "pairs", originals(store, recipe), changed(recipe, rehearsal=0.0), 0, 16)
    assert torch.equal(never.batch(indices, seeds).code.ids, made.code.ids)


def test_an_image_to_train_on_must_be_left(lines, tmp_path):
    recipe, work = lines("kl")
    with pytest.raises(ValueError, match="posttrain.held_out is 1438, and there are only 1438 training images"):
        run(changed(recipe, pairs=5000, held_out=1438), work, tmp_path / "decoder")


def test_without_post_training_the_tokenizer_passes_through(lines, tmp_path):
    recipe, work = lines("kl")
    stage.run(replace(recipe, posttrain=None), work, tmp_path / "decoder")
    assert not (tmp_path / "decoder" / "pairs").exists()
    assert equal(tmp_path / "decoder", work.root / "latents" / "tokenizer", recipe)


def test_a_task_that_would_change_codes_is_refused(lines):
    recipe, _ = lines("vq")
    tokenizer, phase = build_tokenizer(recipe), recipe.posttrain.phase
    DecoderTraining(tokenizer, phase, {"pixel": Pixel()})
    for changes, words in (
        ({"train": "all"}, "^phase.train is 'all', but codes must stay as they are"),
        ({"perturbation": {"kind": "codebook_neighbours", "strength": 2}}, "^phase.perturbation changes codes"),
    ):
        with pytest.raises(ValueError, match=words):
            DecoderTraining(tokenizer, replace(phase, **changes), {"pixel": Pixel()})
