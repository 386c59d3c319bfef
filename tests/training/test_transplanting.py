"""A trained generator on another codebook: which rows it begins with, what that loses, and what is refused."""

import json
import math
from pathlib import Path

import contracts
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support.tiny_pipeline import randomised
from torch import Tensor, nn

from pipeline.adapters import load_adapter
from pipeline.checks.line import check_starts
from pipeline.checks.recipe import check_recipe
from pipeline.code import LatentSpec
from pipeline.components import Arguments, build, find, structure
from pipeline.datasets.digits import Digits
from pipeline.networks.causal_transformer import CausalTransformer
from pipeline.recipes.building import build_network, build_tokenizer, plan_tokenizer
from pipeline.recipes.generator_training import Adapter, GeneratorTraining, Start
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import Recipe, load
from pipeline.runs.workspace import NOTE, Workspace, fingerprint
from pipeline.similarities.base import CodePair
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.training.starting_weights import start_network
from pipeline.training.transplanting import transplant_tables
from pipeline.training.tuning import save_tuned, tune
from stages import encode_dataset, train_generator, train_jointly

VOCAB, DIM = 16, 4
NETWORKS = contracts.examples("networks")


def with_tables() -> list[str]:
    """The names of examples of networks with rows of codes, one for each set of tables."""
    names = {}
    for name, node in NETWORKS.items():
        if find("networks", node["kind"]).code_tables:
            network = contracts.network_of(node)
            tables = [key for key in network.state_dict() if network.table_of(key) is not None]
            names.setdefault((node["kind"], *tables), name)
    return list(names.values())


@pytest.mark.parametrize("name", with_tables())
@torch.no_grad()
def test_a_network_with_permuted_rows_answers_for_permuted_ids(name):
    old = contracts.network_of(NETWORKS[name])
    vocab, request = old.config.vocab, contracts.request_of(old)
    new_of_old = torch.randperm(vocab, generator=torch.Generator().manual_seed(3))
    near = torch.eye(vocab)[new_of_old.argsort()]  # row new, column old
    new = type(old)(**Arguments.from_config(old)).eval()
    segments, codebooks = max(1, len(old.config.get("segments") or [])), old.config.codebooks
    new.begin_from(
        old,
        tables=transplant_tables(new, old, build("transplants", {"kind": "nearest"}), [[near] * codebooks] * segments),
    )
    if "codebook" in new.taken:  # the vectors of ids, which are the tokenizer's
        new.codebook.copy_(old.codebook[:, new_of_old.argsort()])
    expected = old(**request)
    answer = new(**request | {"ids": new_of_old[request["ids"]]})
    torch.testing.assert_close(answer[..., new_of_old], expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(answer, expected, atol=1e-2)


@pytest.mark.parametrize("name", with_tables())
def test_every_weight_that_has_a_row_for_each_code_is_named_and_of_the_part_codes(name):
    old = contracts.network_of(NETWORKS[name])
    new = type(old)(**Arguments.from_config(old) | {"vocab": old.config.vocab + 3})
    shapes = {key: weight.shape for key, weight in old.state_dict().items()}
    differing = {key for key, weight in new.state_dict().items() if weight.shape != shapes[key]} - set(new.taken)
    assert differing == {key for key in shapes if new.table_of(key) is not None}
    assert all(new.is_of(key, ("codes",)) for key in differing)
    near = [[torch.randn(old.config.vocab + 3, old.config.vocab)] * old.config.codebooks] * 9
    tables = transplant_tables(new, old, build("transplants", {"kind": "weighted"}), near)
    assert {key: table.shape for key, table in tables.items()} == {
        key: new.state_dict()[key].shape for key in differing
    }


def rows(kind: str, similarity: Tensor, **arguments) -> Tensor:
    old, drawn = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0]]), torch.full((len(similarity), 2), 9.0)
    return build("transplants", {"kind": kind, **arguments}).rows(old, drawn, similarity)


def test_what_each_way_makes_of_the_old_rows():
    share = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.1, 0.8]])
    assert rows("nearest", share.log()).tolist() == [[1, 0], [4, 4]]
    torch.testing.assert_close(rows("weighted", share.log()), torch.tensor([[0.7, 0.3], [3.3, 3.3]]))
    torch.testing.assert_close(rows("weighted", share.log(), neighbours=1), torch.tensor([[1.0, 0.0], [4.0, 4.0]]))
    sharp = torch.tensor([[0.49, 0.09, 0.0]]) / 0.58
    torch.testing.assert_close(rows("weighted", share.log(), temperature=0.5)[0], sharp[0, :2])
    torch.testing.assert_close(rows("mean", share.log()), torch.full((2, 2), 5 / 3))
    assert (rows("random", share.log()) == 9).all()


def test_the_end_of_a_row_is_no_code_and_keeps_its_row():
    sizes = {"grid": [6], "num_classes": 2, "depth": 1, "width": 8, "heads": 2, "ends": True}
    old, new = (CausalTransformer(vocab=vocab, **sizes) for vocab in (5, 7))
    tables = transplant_tables(new, old, build("transplants", {"kind": "mean"}), None)
    rows, trained = tables["token_embedding.tables.0.weight"], old.token_embedding.tables[0].weight
    assert torch.equal(rows[6], trained[4]) and len(rows) == 7
    torch.testing.assert_close(rows[:6], trained[:4].mean(dim=0).expand(6, -1))
    ids = torch.tensor([[0, 1, 4], [3, 4, 4]]), torch.tensor([[5, 2, 6], [0, 6, 6]])
    pair = CodePair(Counted(vocab=5, ends=True), Counted(vocab=7, ends=True), lambda count: iter([ids]))
    ((near,),) = build("similarities", {"kind": "co_occurrence"}).measure(pair)
    assert near.shape == (6, 4) and near.argmax(dim=1)[[0, 2, 5]].tolist() == [3, 1, 0]


class Counted(nn.Module):
    """As much of a tokenizer as a similarity of ids looks at."""

    def __init__(self, **spec):
        super().__init__()
        self.spec = LatentSpec((2,), 1, **spec)


def test_codes_at_the_same_places_are_counted_for_each_codebook():
    old = torch.tensor([[[0, 1], [1, 0]], [[0, 1], [0, 0]]])  # [B, N, codebooks]
    new = torch.tensor([[[2, 0], [0, 0]], [[2, 0], [2, 1]]])
    pair = CodePair(Counted(vocab=2, codebooks=2), Counted(vocab=3, codebooks=2), lambda count: iter([(old, new)]))
    first, second = build("similarities", {"kind": "co_occurrence"}).measure(pair)[0]
    assert first.exp().tolist() == [[0, 1], [0, 1], [1, 0]], "code 1 is never there, and old code 1 is the rarest"
    torch.testing.assert_close(second.exp(), torch.tensor([[1 / 3, 2 / 3], [1.0, 0.0], [0.5, 0.5]]))
    segments = {"vocab": 2, "segments": ((1,), (1,))}
    pair = CodePair(Counted(**segments), Counted(**segments), lambda count: iter([(old[..., 0], 1 - old[..., 0])]))
    (head,), (tail,) = build("similarities", {"kind": "co_occurrence"}).measure(pair)
    assert head.exp().tolist() == [[0, 1], [1, 0]] and tail.exp().tolist() == [[0, 1], [1, 0]]


def recipe_of(vocab: int = VOCAB, start: dict | None = None, pictures: str = "nowhere", **network) -> Recipe:
    bottleneck = {"kind": "vector_quantize", "dim": DIM, "vocab": vocab, "unit_norm": False}
    model = {"kind": "conv_autoencoder", "width": 8, "multipliers": [1, 2, 2], "blocks": 1, "groups": 4}
    sizes = {"kind": "causal_transformer", "depth": 1, "width": 16, "heads": 2}
    generator = {
        "network": sizes | network,
        "objective": {"kind": "next_token"},
        "weights": {"next_token": 1.0},
        "loop": {"steps": 0, "lr": {"network": 1e-3}},
        "start": start,
    }
    values = {
        "name": "tiny",
        "data": {"source": {"kind": "image_folder", "path": pictures}, "size": 16},
        "tokenizer": {"model": model | {"middle_attention": False, "bottleneck": bottleneck}, "start": "anywhere"},
        "generator": generator,
        "latents": {"batch": 512, "precision": "fp32"},
    }
    return structure(Recipe, values)


def tokenizer_of(vocab: int, order: Tensor | None = None) -> ConvAutoencoder:
    """One whose code vectors are latents of pictures, so that each is used; those of fewer codes are the first."""
    tokenizer = randomised(build_tokenizer(recipe_of(vocab)), 1)
    digits = Digits("train")
    pixels = np.stack([np.asarray(digits.read(i).image.resize((16, 16)).convert("L")) for i in range(vocab)])
    images = (torch.from_numpy(pixels)[:, None] / 127.5 - 1).expand(-1, 3, -1, -1)
    vectors = tokenizer.features(images)[torch.arange(vocab), 5 + torch.arange(vocab) % 6].detach()
    tokenizer.neck.codebook.data = vectors if order is None else vectors[order]
    return tokenizer


def write_pictures(folder: Path) -> str:
    """The first 64 digits to train on, and 16 more that are held out."""
    digits = Digits("train")
    for index in range(80):
        record = digits.read(index)
        place = folder / ("train" if index < 64 else "val") / str(record.label)
        place.mkdir(parents=True, exist_ok=True)
        record.image.save(place / f"{index}.png")
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Workspace]:
    """A run whose generator knows its codes, one whose codes have other numbers, and one of more codes."""
    root = tmp_path_factory.mktemp("runs")
    pictures, order = (
        write_pictures(root / "pictures"),
        torch.randperm(VOCAB, generator=torch.Generator().manual_seed(2)),
    )
    runs = {}
    for name, tokenizer in (
        ("old", tokenizer_of(VOCAB)),
        ("permuted", tokenizer_of(VOCAB, order)),
        ("larger", tokenizer_of(24)),
    ):
        work = runs[name] = Workspace(root / name, Accelerator(cpu=True))
        for artefact in ("tokenizer", "joint", "latents", "generator"):
            (work.root / artefact).mkdir(parents=True)
            (work.root / artefact / NOTE).write_text("{}")
        tokenizer.save_pretrained(work.root / "tokenizer")
        for stage in (train_jointly, encode_dataset):
            stage.run(recipe_of(tokenizer.spec.vocab, pictures=pictures), work, work.root / stage.WRITES)
    recipe = recipe_of()
    network = build_network(recipe, plan_tokenizer(recipe).spec, 10, build("objectives", recipe.generator.objective))
    randomised(network, 4).save_pretrained(root / "old" / "generator" / "network")
    return runs


def begin(runs: dict[str, Workspace], name: str, out: Path, vocab: int = VOCAB, **start) -> dict:
    """The record of a training that begins with the old generator on the codes of another run."""
    pictures = str(runs["old"].root.parent / "pictures")
    recipe = recipe_of(vocab, {"folder": str(runs["old"].root), **start}, pictures)
    out.mkdir(parents=True)
    train_generator.run(recipe, runs[name], out)
    return json.loads((out / "transplant.json").read_text())


def test_the_nearest_row_loses_nothing_where_codes_have_other_numbers_alone(runs, tmp_path):
    by_vectors = {"kind": "nearest", "similarity": {"kind": "code_vectors"}}
    before = begin(runs, "old", tmp_path / "old", transplant=by_vectors)
    for number, node in enumerate((by_vectors, {"kind": "nearest"})):
        after = begin(runs, "permuted", tmp_path / str(number), transplant=node)
        for name in ("held_out", "train"):
            assert after[name] == pytest.approx(before[name], rel=1e-5), (number, name)
        assert after["transplant"] == node and after["old_tokenizer"] == str(runs["old"].root / "latents" / "tokenizer")
    assert abs(begin(runs, "permuted", tmp_path / "mean", transplant="mean")["held_out"] - before["held_out"]) > 1e-3


def test_random_rows_know_no_code_and_more_codes_have_rows_of_their_own(runs, tmp_path):
    random = begin(runs, "larger", tmp_path / "random", 24, transplant="random")
    assert random["held_out"] == pytest.approx(math.log(24), rel=1e-4), "a head at zero"
    weighted = begin(runs, "larger", tmp_path / "weighted", 24, transplant="weighted")
    assert weighted["held_out"] != random["held_out"]
    network = network_in(tmp_path / "weighted")
    stored = network_in(runs["old"].root / "generator")
    assert network.config.vocab == 24
    for name, weight in stored.state_dict().items():
        kept = network.table_of(name) is None
        assert kept == (weight.shape == network.state_dict()[name].shape), name
        assert not kept or torch.equal(weight, network.state_dict()[name]), name


def network_in(folder: Path) -> CausalTransformer:
    return CausalTransformer.from_pretrained(folder / "network")


def test_the_old_tokenizer_counts_among_what_the_training_depends_on(runs, tmp_path):
    recipe = recipe_of(24, {"folder": str(runs["old"].root), "transplant": "weighted", "tokenizer": str(tmp_path)})
    hashed = []
    for vocab in (VOCAB, 24):
        tokenizer_of(vocab).save_pretrained(tmp_path)
        hashed.append(fingerprint(train_generator.uses(recipe)))
    assert hashed[0] != hashed[1]
    assert recipe.generator.has_new_parts, "the rate lr.new is that of the rows"


def test_an_adapter_comes_with_the_rows_of_the_new_codes(runs, tmp_path):
    start = Start(str(runs["old"].root), transplant="mean")
    part = GeneratorTraining(Loop(1, {"network": 1e-3}), start=start, adapter=Adapter(2))
    old = network_in(runs["old"].root / "generator")
    network = CausalTransformer(**Arguments.from_config(old) | {"vocab": 24})
    way = build("transplants", start.transplant)
    start_network(network, start, lambda new, stored: transplant_tables(new, stored, way, None))
    new = tune(network, part)
    assert {name for name in new if network.table_of(name) is not None} == {
        name for name in network.state_dict() if network.table_of(name) is not None
    }
    with torch.no_grad():
        for name in new:
            network.get_parameter(name).normal_(std=0.1)
    save_tuned(network, part, [], tmp_path)
    loaded, _ = load_adapter(old, tmp_path / "adapter")
    ids = torch.randint(24, (2, 16))
    torch.testing.assert_close(loaded.eval()(ids), network.eval()(ids), atol=1e-5, rtol=1e-4)


def fails(runs, words: str, vocab: int = 24, depth: int = 1, **start) -> None:
    """Assert that `check` refuses such a start of a generator in one line."""
    recipe = recipe_of(vocab, {"folder": str(runs["old"].root), **start}, depth=depth)
    checked = check_recipe(recipe)
    recipe.tokenizer.start = None
    network = build_network(recipe, checked.spec, 10, checked.generator.objective)
    with pytest.raises(ValueError, match=words) as error:
        check_starts(recipe, checked.spec, None, network)
    assert "\n" not in str(error.value)


def test_what_cannot_be_compared_is_said_in_one_line_before_anything_is_trained(runs, tmp_path):
    fails(runs, "has vocab 16, the recipe 24; keep its tokenizer, or add transplant: weighted, or reinitialise")
    fails(runs, "generator.start: the network in .* has depth 1, the recipe 2", depth=2, transplant="mean")
    other = recipe_of()
    other.data.size = 32
    build_tokenizer(other).save_pretrained(tmp_path / "larger")
    folder = str(tmp_path / "larger")
    fails(
        runs,
        "generator.start.transplant compares codes of the same pictures, .*32x32, not .*16x16; set kind=mean",
        transplant="nearest",
        tokenizer=folder,
    )
    wide = recipe_of()
    wide.tokenizer.model["bottleneck"]["dim"], wide.tokenizer.model["multipliers"] = 2, [1, 2]
    build_tokenizer(wide).save_pretrained(tmp_path / "wide")
    folder = str(tmp_path / "wide")
    fails(
        runs,
        "co_occurrence compares codes at the same places, and grid was .8, 8. and is .4, 4.",
        transplant="weighted",
        tokenizer=folder,
    )
    node = {"kind": "nearest", "similarity": {"kind": "code_vectors"}}
    fails(
        runs,
        "code_vectors compares vectors of one space, and there are 2 channels and 4",
        transplant=node,
        tokenizer=folder,
    )


def test_settings_that_fit_no_transplant_are_refused():
    for settings, words in (
        (
            ["generator.start.transplant=nearst"],
            "generator.start.transplant: there is no kind 'nearst'; did you mean 'nearest'",
        ),
        (["generator.start.transplant={kind: weighted, neighbours: 0}"], "generator.start.transplant.neighbours is 0"),
        (["generator.start.reinitialise=[codes]"], "transplant makes the rows of codes, and reinitialise names codes"),
        (["generator.start.transplant=null", "generator.start.tokenizer=x"], "tokenizer is for a transplant"),
        (["generator.start.transplant.similarity={kind: nothing}"], "similarity: there is no kind 'nothing'"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            check_recipe(load("digits_transplant", settings))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="transplant makes rows of ids, and these codes are continuous"):
        check_recipe(load("digits", ["generator.start={folder: x, transplant: mean}"]))
    bits = "generator.network={kind: causal_bit_transformer, depth: 1, width: 32, heads: 2}"
    with pytest.raises(ValueError, match="a CausalBitTransformer has no row for each code"):
        check_recipe(load("digits_transplant", [bits, "tokenizer.model.bottleneck.vocab=256"]))
    with pytest.raises(ValueError, match="transplant is for another codebook, and folder is joint"):
        Start("joint", transplant="mean")
