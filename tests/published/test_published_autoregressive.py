"""Checkpoints of LlamaGen's generators and of RAR convert whole, by their shapes, or not at all."""

import json
from pathlib import Path

import generating
import pytest
import torch
from safetensors.torch import load_file
from support.autoregressive_sampling import spec_of

from pipeline.code import Condition
from pipeline.commands.import_checkpoint import import_checkpoint
from pipeline.draws import ImageDraws
from pipeline.published import llamagen_gpt, rar
from pipeline.samplers.guidance import Guidance

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = {"heads": 4, "tokens": 16}  # of the LlamaGen case; the published sizes need none stated


def state(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / name / "state.safetensors")


def constructor(name: str) -> dict:
    return json.loads((GOLDEN / name / "meta.json").read_text())["constructor"]


def test_arguments_of_llamagen_are_told_by_its_shapes():
    parts, stated = llamagen_gpt.convert(state("llamagen_gpt"), **SMALL), constructor("llamagen_gpt")
    config = parts["network"].config
    assert (config.width, config.depth, config.heads) == (stated["dim"], stated["n_layer"], stated["n_head"])
    assert (config.vocab, config.num_classes, list(config.grid)) == (64, 10, [4, 4])
    assert type(parts["objective"]).__name__ == "NextToken"


def test_arguments_of_rar_are_told_by_its_shapes():
    parts, stated = rar.convert(state("rar")), constructor("rar")["model"]["generator"]
    config = parts["network"].config
    assert (config.width, config.depth) == (stated["hidden_size"], stated["num_hidden_layers"])
    assert config.heads == stated["num_attention_heads"] and config.feed_forward_ratio == 4
    assert (config.vocab, config.num_classes, list(config.grid)) == (40, 8, [4, 4])
    assert parts["objective"].config.anneal_end == 187_500


def test_published_llamagen_needs_nothing_stated():
    sizes = {"tok_embeddings.weight": (16384, 768), "norm.weight": (768,), "output.weight": (16384, 768)}
    sizes |= {"cls_embedding.embedding_table.weight": (1001, 768)}
    layer = {"attention.wqkv": (2304, 768), "attention.wo": (768, 768), "feed_forward.w1": (2048, 768)}
    layer |= {"feed_forward.w2": (768, 2048), "feed_forward.w3": (2048, 768)}
    layer |= {"attention_norm": (768,), "ffn_norm": (768,)}
    sizes |= {f"layers.0.{name}.weight": size for name, size in layer.items()}
    with torch.device("meta"):
        network = llamagen_gpt.convert({key: torch.empty(size) for key, size in sizes.items()})["network"]
    assert network.config.heads == 12 and network.tokens == 256


def test_nothing_is_lost_or_invented():
    weights = state("llamagen_gpt")
    llamagen_gpt.convert(weights | {"freqs_cis": torch.zeros(1)}, **SMALL)  # a table that is made here
    with pytest.raises(ValueError, match="1 unexpected keys in the checkpoint: layers.0.attention.bias"):
        llamagen_gpt.convert(weights | {"layers.0.attention.bias": torch.zeros(1)}, **SMALL)
    with pytest.raises(ValueError, match="missing from the checkpoint: blocks.1.attention.proj.weight"):
        llamagen_gpt.convert({k: v for k, v in weights.items() if k != "layers.1.attention.wo.weight"}, **SMALL)
    with pytest.raises(ValueError, match="has no layers.2.feed_forward.w3.weight"):
        llamagen_gpt.convert({k: v for k, v in weights.items() if k != "layers.2.feed_forward.w3.weight"}, **SMALL)
    with pytest.raises(ValueError, match="number of heads of width 48"):
        llamagen_gpt.convert(weights)
    with pytest.raises(ValueError, match="not a square"):
        llamagen_gpt.convert(weights, **SMALL | {"tokens": 15})
    with pytest.raises(ValueError, match="not a LlamaGen generator checkpoint"):
        llamagen_gpt.convert(state("rar"))
    with pytest.raises(ValueError, match="not a RAR checkpoint"):
        rar.convert(weights)
    with pytest.raises(ValueError, match="1 unexpected keys in the checkpoint: blocks.0.extra"):
        rar.convert(state("rar") | {"blocks.0.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="disagree on the number of tokens"):
        rar.convert(state("rar") | {"timesteps_embeddings": torch.zeros(1, 117, 32)})


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "steps": 7}], ids=["bare", "model"])
def test_an_imported_generator_loads_and_samples_as_the_converted_one(tmp_path, wrap):
    from pipeline.networks.causal_transformer import CausalTransformer
    from pipeline.objectives.random_order import RandomOrder

    torch.save(wrap(state("rar")), tmp_path / "rar.bin")
    import_checkpoint(["rar", str(tmp_path / "rar.bin"), str(tmp_path / "out")])
    parts = rar.convert(state("rar"))
    network = CausalTransformer.from_pretrained(tmp_path / "out" / "network")
    objective = RandomOrder.from_pretrained(tmp_path / "out" / "objective")
    found = []
    for each, model in ((objective, network), (parts["objective"], parts["network"])):
        draws, condition = ImageDraws.from_seeds([0, 1]), Condition(labels=torch.tensor([1, 2]))
        found.append(generating.sample(each, model, condition, spec_of(model), draws, 16, Guidance(2.0)).ids)
    assert torch.equal(*found)


def test_what_no_weight_tells_is_stated_on_the_command_line(tmp_path):
    torch.save({"model": state("llamagen_gpt")}, tmp_path / "c2i.pt")
    place = [str(tmp_path / "c2i.pt"), str(tmp_path / "out")]
    for setting, message in (("token=16", "did you mean 'tokens'"), ("tokens=many", "not a whole number")):
        with pytest.raises(ValueError, match=message):
            import_checkpoint(["llamagen_gpt", *place, setting])
    import_checkpoint(["llamagen_gpt", *place, *(f"{name}={value}" for name, value in SMALL.items())])
    assert json.loads((tmp_path / "out" / "network" / "config.json").read_text())["grid"] == [4, 4]
