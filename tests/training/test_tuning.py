"""Tuning of a trained generator: what is taken over, drawn anew or stretched, adapters, and rates of their own."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from support.sharded_training import Rows, task_of
from support.tiny_pipeline import NAMES, make_network, make_pipeline, make_run

from pipeline.adapters import LOW_RANK, METADATA, load_adapter
from pipeline.checks.recipe import check_recipe
from pipeline.checks.starting_weights import check_network_start
from pipeline.code import Condition
from pipeline.files.writing import write_tensors
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.nn import lora
from pipeline.nn.embeddings import coordinates, resample_positions, rotary_tables
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.recipes.generator_training import Adapter, GeneratorTraining, Start
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import load
from pipeline.training.generation import Generation
from pipeline.training.loop import TrainingRun, train
from pipeline.training.starting_weights import start_network
from pipeline.training.tuning import merged, save_tuned, tune

LR = {"network": 1e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A generator of four classes on a grid of 4x4, as its run has it."""
    root = tmp_path_factory.mktemp("run")
    make_run(root)
    return root


def part_of(folder, lr=LR, adapter=None, **start) -> GeneratorTraining:
    return GeneratorTraining(Loop(3, lr), start=Start(str(folder), **start), adapter=adapter)


def test_places_of_another_grid_lie_where_they_lie_in_the_image():
    assert torch.equal(coordinates([3, 4], [3, 4]), coordinates([3, 4]))
    fine = coordinates([4, 8], [2, 4]).view(4, 8, 2)
    pooled = fine.unflatten(0, (2, 2)).unflatten(2, (4, 2)).mean(dim=(1, 3))
    torch.testing.assert_close(pooled.flatten(0, 1), coordinates([2, 4]))
    assert torch.equal(rotary_tables([6], 8, [6])[0], rotary_tables([6], 8)[0])


def test_learned_positions_are_stretched_and_a_prefix_stays():
    ramp = coordinates([6, 4]).float()  # a bicubic of a plane is that plane, away from the border
    table = torch.cat([torch.full((2, 2), 9.0), ramp])
    stretched = resample_positions(table, [6, 4], [12, 8])
    assert torch.equal(stretched[:2], table[:2])
    expected = coordinates([12, 8], [6, 4]).float().view(12, 8, 2)[4:-4, 3:-3]
    torch.testing.assert_close(stretched[2:].view(12, 8, 2)[4:-4, 3:-3], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(resample_positions(table, [6, 4], [6, 4]), table)
    torch.testing.assert_close(resample_positions(torch.ones(6, 3), [6], [9]), torch.ones(9, 3))


@pytest.mark.parametrize("reading", ["context", "cross_attention", "pooled"])
def test_a_network_without_captions_learns_to_read_them_where_their_part_is_drawn_anew(folder, reading):
    text = {"text_tokens": 3, "text_dim": 5, "text_reading": reading}
    network, start = make_network(**text), Start(str(folder), ("text",))
    check_network_start(network, start)
    start_network(network, start)
    trained = make_network()
    theirs = trained.state_dict()
    own = {name for name in network.state_dict() if network.is_of(name, ("text",))}
    assert own and set(network.state_dict()) - own == set(theirs)
    assert all(torch.equal(network.state_dict()[name], weight) for name, weight in theirs.items())
    assert {name.split(".")[0] for name in own} == {"text", "blocks"} if reading == "cross_attention" else {"text"}
    assert set(tune(network, part_of(folder, reinitialise=("text",)))) <= own
    if reading == "cross_attention":  # which begins at zero
        inputs = torch.randn(2, *network.state_shape), torch.tensor([0.2, 0.7])
        caption = Condition(torch.tensor([0, 1]), torch.randn(2, 3, 5), torch.ones(2, 3, dtype=torch.bool))
        network.blocks.requires_grad_(False)
        for block in network.blocks:
            block.text_attention.proj.weight.zero_(), block.text_attention.proj.bias.zero_()
        expected = trained.eval()(*inputs, Condition(caption.labels))
        torch.testing.assert_close(network.eval()(*inputs, caption), expected)


def test_what_fits_is_taken_over_and_the_rest_is_new_or_stretched(folder):
    trained = make_network()
    network = make_network(2, grid=[8, 8], position_grid=[4, 4])
    labels = network.label_embedding.weight.clone()
    start_network(network, Start(str(folder), ("labels",), ("positions",)))
    assert torch.equal(network.label_embedding.weight, labels)
    state, theirs = network.state_dict(), trained.state_dict()
    assert all(torch.equal(state[name], theirs[name]) for name in state if name != "label_embedding.weight")
    coarse, fine = trained.positions.view(4, 4, -1), network.positions.view(8, 8, -1)
    pooled = fine.unflatten(0, (4, 2)).unflatten(2, (4, 2)).mean(dim=(1, 3))
    low = slice(8, 16)  # of the lowest frequencies the mean of four neighbours is that of their middle
    torch.testing.assert_close(pooled[..., low], coarse[..., low], atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "network, start, words",
    [
        ({"num_classes": 2}, {}, "has classes 4, the recipe 2; add reinitialise: .labels."),
        ({"grid": [8, 8]}, {}, "has grid .4, 4., the recipe .8, 8.; add resample: .positions."),
        ({"dim": 5}, {}, "has dim 3, the recipe 5; keep its tokenizer and its objective, or add reinitialise: .codes."),
        ({"text_tokens": 3, "text_dim": 5}, {}, "has text .*; keep its text encoder .*, or add reinitialise: .text."),
        ({"width": 16}, {"reinitialise": ("labels",)}, "has width 32, the recipe 16; set generator.network.width=32"),
    ],
)
def test_what_does_not_fit_is_said_with_what_to_add(folder, network, start, words):
    with pytest.raises(ValueError, match=f"^generator.start: the network in .*{words}$") as error:
        check_network_start(make_network(**network), Start(str(folder), **start))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="^generator.start: nowhere holds no network; name"):
        check_network_start(make_network(), Start("nowhere"))


def test_a_recipe_may_leave_all_models_to_the_folder_that_it_starts_from(folder):
    pipe = make_pipeline()
    pipe.save_pretrained(folder / "pipeline")
    overrides = ["data.size=16", "generator.objective=null"]
    for start, tokenizer in ((folder, folder / "decoder"), (folder / "pipeline", folder / "pipeline" / "tokenizer")):
        recipe = load("finetune_generator", [f"generator.start.folder={start}", *overrides])
        assert recipe.generator.network == {"kind": "diffusion_transformer", "depth": 2, "width": 32, "heads": 2}
        assert recipe.generator.objective["kind"] == "flow_matching" and recipe.generator.weights == {"flow": 1.0}
        assert recipe.tokenizer.start == str(tokenizer) and recipe.tokenizer.model["kind"] == "conv_autoencoder"
    for stated, words in (
        (f"generator.start.folder={folder / 'report'}", "generator.start.folder: there is no network in "),
        ("generator.start=null", "generator.network is missing; state it in the recipe, or a folder that has it"),
    ):
        with pytest.raises(ValueError, match=words):
            load("finetune_generator", [stated])
    short = load("digits", [f"generator.start={folder}"])
    assert short.generator.start == Start(str(folder))


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="resample and reinitialise both name positions"):
        Start("x", ("positions",), ("positions",))
    with pytest.raises(ValueError, match="adapter changes a trained network, and start names none"):
        load("digits", ["generator.adapter={rank: 2}"])


def test_new_parameters_are_named_and_nothing_else_is_trained_with_an_adapter_or_at_rate_zero(folder):
    network = make_network()
    assert tune(network, part_of(folder, reinitialise=("labels",))) == ["label_embedding.weight"]
    assert all(parameter.requires_grad for parameter in network.parameters())
    frozen = part_of(folder, {"network": 0.0, "new": 1e-3}, reinitialise=("labels",))
    for part in (frozen, part_of(folder, reinitialise=("labels",), adapter=Adapter(2))):
        network = make_network()
        new = tune(network, part)
        assert {name for name, one in network.named_parameters() if one.requires_grad} == set(new)
    assert len(new) == 1 + 2 * 2 * network.config.depth  # A and B of two layers in each block


def fit(folder, steps: int = 6):
    task, loop = task_of("adapter")
    run = TrainingRun(replace(loop, steps=steps), folder, 3, Accelerator(cpu=True))
    return task, train(task, Rows("adapter"), run)["network"]


def test_an_adapter_trains_alone_and_resumes_to_the_bit(tmp_path):
    start = task_of("adapter")[0].players["network"].state_dict()
    task, straight = fit(tmp_path / "whole")
    fit(tmp_path / "half", 3)
    _, resumed = fit(tmp_path / "half")
    moved = {name for name, weight in straight.state_dict().items() if not torch.equal(weight, start[name])}
    assert moved == set(task.new["network"])
    assert all(torch.equal(weight, resumed.state_dict()[name]) for name, weight in straight.state_dict().items())
    last = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["network/lr"], last["new/lr"]) == (1e-3, 3e-3)


def test_what_is_new_learns_at_its_own_rate(tmp_path):
    network = make_network(5, dim=6)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    part = part_of(tmp_path, {"network": 1e-3, "new": 4e-3}, reinitialise=("labels",))
    task = Generation(network, FlowMatching(), {"flow": 1.0}, new=tune(network, part))
    loop = replace(part.loop, steps=1, batch=8, ema=0.0)
    after = train(task, Rows("adapter"), TrainingRun(loop, tmp_path, 3, Accelerator(cpu=True)))["network"]
    steps = {name: (weight - before[name]).abs().max().item() for name, weight in after.state_dict().items()}
    assert steps["label_embedding.weight"] == pytest.approx(4e-3, rel=1e-2)  # Adam's first step is as long as the rate
    assert steps["blocks.0.attention.qkv.weight"] == pytest.approx(1e-3, rel=1e-2)


def test_a_rate_of_what_is_new_needs_something_new():
    with pytest.raises(ValueError, match="generator.loop.lr.new is a rate, and nothing is new in a network that was"):
        check_recipe(load("digits", ["generator.loop.lr.new=0.1"]))


@pytest.fixture(scope="module")
def tuned(folder, tmp_path_factory):
    """What a training with an adapter leaves, of two classes on a larger grid; and the network before it was merged."""
    out = tmp_path_factory.mktemp("generator")
    part = part_of(folder, adapter=Adapter(2, 3.0, "all"), reinitialise=("labels",), resample=("positions",))
    network = make_network(2, grid=[8, 8], position_grid=[4, 4])
    start_network(network, part.start)
    tune(network, part)
    with torch.no_grad():
        for matrix in lora.adapters(network):
            matrix.normal_(std=0.2)
    save_tuned(network, part, ["cat", "dog"], out)
    return out, network


def test_the_small_file_makes_of_the_base_what_the_merged_network_is(tuned):
    out, network = tuned
    plain = DiffusionTransformer.from_pretrained(out / "network")
    loaded, names = load_adapter(make_network(), out / "adapter")
    assert names == ["cat", "dog"] and loaded.config.num_classes == 2 and list(loaded.config.grid) == [8, 8]
    x, time, condition = torch.randn(2, 64, 3), torch.tensor([0.3, 0.7]), Condition(torch.tensor([0, 1]))
    expected = network(x, time, condition)
    for one in (plain, loaded.eval(), merged(network)):
        torch.testing.assert_close(one(x, time, condition), expected, atol=1e-5, rtol=1e-4)
    assert any(isinstance(module, lora.LowRankLinear) for module in network.modules()), "merging leaves the average"


def test_the_file_is_laid_out_as_diffusers_and_peft_have_it(tuned):
    out, network = tuned
    with safe_open(out / "adapter" / LOW_RANK, framework="pt") as stored:
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
        settings = json.loads(stored.metadata()[METADATA])
    layers = make_network().adapted_layers("all")
    width = network.config.width
    assert shapes.keys() == {f"network.{name}.lora_{one}.weight" for name in layers for one in "AB"}
    assert shapes["network.blocks.0.attention.qkv.lora_A.weight"] == (2, width)
    assert shapes["network.blocks.0.attention.qkv.lora_B.weight"] == (3 * width, 2)
    expected = {"network.r": 2, "network.lora_alpha": 3.0, "network.target_modules": layers}
    assert settings == expected


def test_a_pipeline_takes_adapters_of_its_network_alone(tuned, tmp_path):
    pipe, name = make_pipeline(), "blocks.1.feed_forward.up"
    before = pipe.network.get_submodule(name).weight.clone()
    down, up = torch.ones(1, 32), torch.ones(128, 1)
    pair = {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    write_tensors(tmp_path / LOW_RANK, pair)
    pipe.load_lora_weights(tmp_path, scale=0.5)
    torch.testing.assert_close(pipe.network.get_submodule(name).weight, before + 0.5)
    assert pipe.id2label == NAMES
    with pytest.raises(ValueError, match="decodes codes of grid=.4, 4., the network makes .8, 8."):
        pipe.load_lora_weights(tuned[0] / "adapter")  # its grid is not that of the pipeline's tokenizer
    renamed = {key.replace("feed_forward.up", "feed_forward.over"): value for key, value in pair.items()}
    for tensors, words in (
        (dict(list(pair.items())[:1]), "holds more than pairs"),
        (renamed, "changes blocks.1.feed_forward.over, and this network has no such layer"),
        (dict(zip(pair, (down, up[:64]))), r"is of another network: blocks.1.feed_forward.up is \[64, 32\], and this"),
    ):
        write_tensors(tmp_path / LOW_RANK, tensors)
        with pytest.raises(ValueError, match=words) as error:
            pipe.load_lora_weights(tmp_path)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="holds no pytorch_lora_weights.safetensors; name the folder of an adapter"):
        pipe.load_lora_weights(tmp_path / "nowhere")
