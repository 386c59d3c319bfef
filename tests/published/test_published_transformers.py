"""Checkpoints of DiT, SiT and LightningDiT convert whole, exactly, or not at all."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.code import Condition
from pipeline.nn.embeddings import fixed_positions
from pipeline.published import dit, lightningdit, sit
from pipeline.published.checkpoint import fill, read, rename
from pipeline.published.transformer_trunk import build, shapes

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {
    "dit_class_conditional": dit,
    "sit_class_conditional": sit,
    "lightningdit_released_switches": lightningdit,
    "lightningdit_qknorm": lightningdit,
}


def case(name: str):
    folder = GOLDEN / name
    heads = json.loads((folder / "meta.json").read_text())["constructor"]["num_heads"]
    return load_file(folder / "state.safetensors"), load_file(folder / "io.safetensors"), heads


def state() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "dit_class_conditional" / "state.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_the_converted_network_is_the_published_one(name):
    weights, io, heads = case(name)
    network = CASES[name].convert(weights, heads=heads)["network"]
    x, flow = io["input.x"], name != "dit_class_conditional"
    u = 1 - io["input.t"] if flow else io["input.t"] / 1000
    with torch.no_grad():
        ours = network(x.flatten(2).mT, u, Condition(labels=io["input.y"])).mT.unflatten(2, x.shape[2:])
    theirs = io["output.forward"]
    assert ((-ours if flow else ours) - theirs).abs().max() <= 1e-4 * max(1, theirs.abs().max())
    if "input.drop_ids" in io:
        labels = torch.where(io["input.drop_ids"] == 1, network.config.num_classes, io["input.drop_labels"])
        assert torch.equal(network.label_embedding(labels), io["output.label_vector_forced_drop"])
        assert torch.allclose(network.time_embedding(io["input.embed_t"]), io["output.time_vector"], atol=5e-4)


@pytest.mark.parametrize("name", CASES)
def test_every_argument_is_told_by_the_shapes(name):
    weights, _, heads = case(name)
    constructor = json.loads((GOLDEN / name / "meta.json").read_text())["constructor"]
    config = CASES[name].convert(weights, heads=None if "lightning" in name else heads)["network"].config
    assert (config.width, config.depth, config.heads) == (constructor["hidden_size"], constructor["depth"], heads)
    assert (config.patch_size, config.dim) == (constructor["patch_size"], constructor["in_channels"])
    assert config.num_classes == constructor["num_classes"]
    assert list(config.grid) == [constructor["input_size"]] * 2
    assert config.query_key_norm == constructor.get("use_qknorm", False)


def test_a_network_that_converts_saves_and_loads(tmp_path):
    network = sit.convert(case("sit_class_conditional")[0], heads=3)["network"]
    network.save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("width, ratio", [(1152, 4.0), (768, 4.0), (1532, 16 / 3), (36, 3.0)])
def test_swiglu_width_comes_back(width, ratio):
    from pipeline.nn.blocks import SwiGLUFeedForward
    from pipeline.published.transformer_trunk import feed_forward_ratio

    with torch.device("meta"):
        stored = SwiGLUFeedForward(width, ratio).up.weight
        again = SwiGLUFeedForward(width, feed_forward_ratio({"blocks.0.mlp.w12.weight": stored}, width, True)).up.weight
    assert again.shape == stored.shape


def test_nothing_is_lost_or_invented():
    weights = state()
    with pytest.raises(ValueError, match="1 unexpected keys in the checkpoint: blocks.0.attn.bias_table"):
        dit.convert({**weights, "blocks.0.attn.bias_table": torch.zeros(1)}, heads=4)
    with pytest.raises(ValueError, match="missing from the checkpoint: blocks.1.attention.proj.bias"):
        dit.convert({k: v for k, v in weights.items() if k != "blocks.1.attn.proj.bias"}, heads=4)
    with pytest.raises(ValueError, match="not a DiT checkpoint"):
        dit.convert({"encoder.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="state heads="):
        dit.convert(weights)
    with pytest.raises(ValueError, match="not the fixed sine-cosine table"):
        dit.convert({**weights, "pos_embed": torch.randn_like(weights["pos_embed"])}, heads=4)
    narrow = {**weights, "blocks.0.adaLN_modulation.1.weight": torch.zeros(5 * 48, 48)}
    with pytest.raises(ValueError, match="here are 5"):
        dit.convert(narrow, heads=4)


def test_published_sizes_need_no_heads():
    with torch.device("meta"):
        for width, heads in {384: 6, 768: 12, 1024: 16, 1152: 16}.items():
            assert shapes(meta_state(width), "DiT")["heads"] == heads


def meta_state(width: int) -> dict[str, torch.Tensor]:
    sizes = {
        "x_embedder.proj.weight": (width, 4, 2, 2),
        "blocks.0.mlp.fc1.weight": (4 * width, width),
        "blocks.0.adaLN_modulation.1.weight": (6 * width, width),
        "y_embedder.embedding_table.weight": (1001, width),
    }
    return {key: torch.empty(size) for key, size in sizes.items()} | {
        "pos_embed": fixed_positions([16, 16], width)[None]
    }


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": {}, "ema": s}, lambda s: {"state_dict": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_containers_and_prefixes_come_off(tmp_path, wrap, prefix):
    weights = state()
    torch.save(wrap({prefix + key: value for key, value in weights.items()}), tmp_path / "file.pt")
    found = read(tmp_path / "file.pt")
    assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)


def test_averaged_weights_are_preferred(tmp_path):
    file = {"model": {"a": torch.zeros(1)}, "ema": {"a": torch.ones(1)}, "opt": {}, "args": argparse.Namespace(lr=1)}
    torch.save(file, tmp_path / "train.pt")
    assert read(tmp_path / "train.pt")["a"] == 1
    save_file({"a": torch.ones(2)}, tmp_path / "bare.safetensors")
    assert read(tmp_path / "bare.safetensors")["a"].shape == (2,)


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_files_that_are_not_weights_are_one_line(tmp_path, capsys):
    torch.save({"model": Harmful()}, tmp_path / "harmful.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    for name, message in {
        "harmful.pt": "convert it to safetensors",
        "empty.pt": "holds no weights",
        "list.pt": "holds a list",
        "text.pt": "cannot be read",
        "text.safetensors": "cannot be read",
        "nothing.pt": "there is no checkpoint",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value)
    assert "must not run" not in capsys.readouterr().out


def test_renaming_is_in_full():
    names = {r"a\.(\d)": r"b.\1"}
    assert rename({"a.1": torch.ones(1), "c": torch.ones(1)}, names, ["c"]).keys() == {"b.1"}
    with pytest.raises(ValueError, match="xa.1"):
        rename({"xa.1": torch.ones(1)}, names)


def test_a_misshapen_weight_is_named():
    with pytest.raises(ValueError, match=r"weight is \[3, 2\] in the checkpoint and \[2, 2\] in the model"):
        fill(torch.nn.Linear(2, 2), {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)})


def test_unused_variance_rows_are_left_out():
    weights, _, heads = case("sit_class_conditional")
    arguments = shapes(weights, "SiT", heads)
    kept = build(weights, {**arguments, "outputs": 1}).head.linear.bias.view(4, 4)
    assert torch.equal(kept, weights["final_layer.linear.bias"].view(4, 8)[:, :4])
