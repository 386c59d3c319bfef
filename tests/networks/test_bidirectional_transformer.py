"""The bidirectional transformer: what it sees, its dropout, its published sizes and checkpoints, and diffusers."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.code import Condition
from pipeline.commands.import_checkpoint import import_checkpoint
from pipeline.components import Arguments, build
from pipeline.draws import StepDraws
from pipeline.networks.bidirectional_transformer import BidirectionalTransformer
from pipeline.nn import attention as door
from pipeline.nn.bidirectional import BlockShape, DroppingAttention, LongSkipBlock
from pipeline.published.maskgit import convert

ROOT = Path(__file__).parents[2]
SIZE = {"depth": 3, "width": 16, "heads": 2}
DROPPING = {"dropout": 0.3, "attention_dropout": 0.2}
VARIANTS = {
    "bert": {},
    "uvit": {"body": "uvit"},
    "uvit_deep": {"body": "uvit", "depth": 5},
    "codebooks": {"codebooks": 3},
    "unconditional": {"num_classes": 0, "body": "uvit"},
}
BODIES = ["bert", "uvit"]


def network(grid=(3, 4), **arguments) -> BidirectionalTransformer:
    """Small, with every weight random."""
    model = BidirectionalTransformer(**({"grid": list(grid), "vocab": 9, "num_classes": 5} | SIZE | arguments))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def request(model: BidirectionalTransformer, batch: int = 3) -> tuple[Tensor, Tensor, Condition | None]:
    """ids, masked and condition; some tokens of every image are masked, and some are not."""
    tokens, classes = torch.Size(model.config.grid).numel(), model.config.num_classes
    ids = torch.randint(model.config.vocab, (batch, tokens, model.config.codebooks))
    masked = (torch.arange(tokens) + torch.arange(batch)[:, None]) % 3 > 0
    return ids, masked, Condition(labels=torch.arange(batch) % classes) if classes else None


def draws(step: int = 0, batch: int = 3, rows: slice | None = None) -> StepDraws:
    return StepDraws(0, step, rows or slice(0, batch), batch)


@pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS)
def test_a_masked_token_reaches_only_its_own_later_codebooks(arguments):
    model = network(**arguments)
    ids, masked, condition = request(model)
    before, changed = model(ids, masked, condition), ids.clone()
    place = int(masked[0].nonzero()[0])
    changed[0, place] = (ids[0, place] + 1) % 9
    differs = (model(changed, masked, condition) != before).any(dim=-1)  # [B, N, codebooks]
    assert not differs[..., 0].any() and differs.sum() == model.config.codebooks - 1 and differs[0, place, 1:].all()
    seen = int((~masked[0]).nonzero()[0])
    changed = ids.clone()
    changed[0, seen] = (ids[0, seen] + 1) % 9
    differs = (model(changed, masked, condition) != before).any(dim=-1)
    assert differs[0].all() and not differs[1:].any()


def test_chosen_ids_are_those_that_teacher_forcing_finds_likeliest():
    model = network(codebooks=3)
    ids, masked, condition = request(model)
    chosen = model(ids, masked, condition, choose=lambda logits, number: logits.argmax(dim=-1))
    forced = torch.where(masked[..., None], chosen, ids)
    assert torch.equal(model(forced, masked, condition).argmax(dim=-1)[masked], chosen[masked])
    hidden = ids.masked_fill(masked[..., None], 0)  # what ids hold at masked places does not matter
    assert torch.equal(model(hidden, masked, condition, choose=lambda logits, _: logits.argmax(dim=-1)), chosen)


def test_ids_of_one_codebook_may_be_plain():
    model = network()
    ids, masked, condition = request(model)
    assert torch.equal(model(ids[..., 0], masked, condition), model(ids, masked, condition))


def test_the_long_skips_are_read_last_in_first_out():
    model, seen = network(body="uvit", depth=5), {}
    assert [block.skip is not None for block in model.blocks] == [False, False, False, True, True]
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, inputs, output, i=i: seen.update({i: (inputs[1], output)}))
    model(*request(model))
    assert [taken is None for taken, _ in seen.values()] == [True, True, True, False, False]
    assert seen[3][0] is seen[1][1] and seen[4][0] is seen[0][1]


@pytest.mark.parametrize("body", BODIES)
def test_dropout_is_a_function_of_its_draws(body):
    model = network(body=body, **DROPPING).train()
    ids, masked, condition = request(model)
    whole, first, again, other = (model(ids, masked, condition, dropout=d) for d in (None, draws(), draws(), draws(1)))
    assert torch.equal(first, again) and not torch.equal(first, whole) and not torch.equal(first, other)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append(inputs[2].attention))
    model(ids, masked, condition, dropout=draws())
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    still = network(body=body, dropout=0.0)
    assert torch.equal(still(ids, masked, condition, dropout=draws()), still(ids, masked, condition))


def test_dropping_attention_weights_leaves_their_mean():
    layer = DroppingAttention(BlockShape(8, 2, 8, 0.0, attention_dropout=0.25), bias=True)
    x, kept = torch.randn(1, 6, 8), torch.rand(4000, 2, 6, 6) >= 0.25
    everywhere = layer(x, torch.ones(1, 2, 6, 6, dtype=torch.bool))
    bias = layer.proj.bias
    torch.testing.assert_close((everywhere - bias) * 0.75 + bias, layer(x), atol=1e-6, rtol=1e-5)
    mean = layer(x.expand(4000, 6, 8), kept).mean(dim=0, keepdim=True)
    torch.testing.assert_close(mean, layer(x), atol=0.02, rtol=0)


def test_each_branch_drops_its_fraction():
    block = LongSkipBlock(BlockShape(16, 2, 16, 0.3, 0.1), skip=False)
    masks = block.masks(draws(batch=64), 8, "blocks.0")
    shares = [1 - kept.float().mean().item() for kept in masks[:3]]
    assert [abs(share - aim) < 0.02 for share, aim in zip(shares, (0.1, 0.3, 0.3))] == [True] * 3
    assert not torch.equal(masks.attention, masks.feed_forward)
    assert not torch.equal(masks.attention, block.masks(draws(batch=64), 8, "blocks.1").attention)


@pytest.mark.parametrize("body", BODIES)
def test_attention_backends_agree(body):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    model = network(body=body)
    asked, before = request(model), _AttentionBackendRegistry._active_backend
    expected = model(*asked)
    with door.backend("written_out"):
        assert torch.allclose(model(*asked), expected, atol=1e-4)
    try:
        model.set_attention_backend("_native_math")
        assert len(model.attn_processors) == 3
        assert torch.allclose(model(*asked), expected, atol=1e-4)
    finally:
        model.reset_attention_backend()
        _AttentionBackendRegistry.set_active_backend(before)


PUBLISHED = {  # tokens, parameters
    "maskgit_bert_titok": (32, 177e6),
    "maskgit_uvit_titok": (128, 294_990_848),  # its own count: the paper states U-ViT-L's, without tables and head
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    fragment = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "networks" / f"{name}.yaml"))
    tokens, expected = PUBLISHED[name]
    with torch.device("meta"):
        model = build("networks", fragment["generator"]["network"], grid=[tokens], vocab=4096, num_classes=1000)
    assert abs(sum(p.numel() for p in model.parameters()) / expected - 1) < 0.005
    if model.config.body == "uvit":
        tables = [model.token_embedding, model.label_embedding, model.head]
        trunk = sum(p.numel() for p in model.parameters()) - sum(p.numel() for m in tables for p in m.parameters())
        assert abs(trunk / 287e6 - 1) < 0.005


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"heads": 3}, "not divisible by heads 3"),
        ({"body": "uvit", "depth": 4}, "depth 4 is even"),
        ({"feed_forward_ratio": 0.01}, "feed_forward_ratio"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(arguments, message):
    arguments = {"grid": [3, 4], "vocab": 9, "num_classes": 5} | SIZE | arguments
    complete = Arguments.complete(BidirectionalTransformer, arguments)
    for attempt in (lambda: BidirectionalTransformer.validate(complete), lambda: BidirectionalTransformer(**arguments)):
        with pytest.raises(ValueError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_wrong_calls_are_one_line():
    model = network(num_classes=0)
    ids, masked, _ = request(model)
    with pytest.raises(ValueError, match="call it without labels"):
        model(ids, masked, Condition(labels=torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(ValueError, match="do not fit the network's grid"):
        model(ids[:, :11], masked[:, :11])


# published checkpoints


def state(body: str) -> dict[str, Tensor]:
    return load_file(ROOT / "tests" / "golden" / f"maskgit_{body}" / "state.safetensors")


@pytest.mark.parametrize("body, heads, depth, classes", [("bert", 4, 2, 6), ("uvit", 2, 5, 5)])
def test_every_argument_follows_from_the_shapes(body, heads, depth, classes):
    weights = state(body)
    config = convert(weights, heads=heads)["network"].config
    assert (config.body, config.depth, config.heads, config.num_classes) == (body, depth, heads, classes)
    key = "embeddings.weight" if body == "uvit" else "model.embeddings.word_embeddings.weight"
    assert len(weights[key]) == config.vocab + 1 + config.num_classes + 1
    with pytest.raises(ValueError, match="state heads="):
        convert(weights)


def test_nothing_is_lost_or_invented():
    weights = state("bert")
    convert({**weights, "model.embeddings.position_ids": torch.arange(13)}, heads=4)
    with pytest.raises(ValueError, match="1 unexpected keys in the checkpoint: model.pooler.dense.weight"):
        convert({**weights, "model.pooler.dense.weight": torch.zeros(1)}, heads=4)
    for missing, message in {
        "model.encoder.layer.1.attention.self.key.bias": "blocks.1.key.bias",
        "model.encoder.layer.1.output.dense.bias": "missing from the checkpoint: blocks.1.feed_forward.down.bias",
        "model.embeddings.token_type_embeddings.weight": "it has no types",
    }.items():
        with pytest.raises(ValueError, match=message):
            convert({key: value for key, value in weights.items() if key != missing}, heads=4)
    with pytest.raises(ValueError, match="not a MaskGIT checkpoint"):
        convert({"encoder.weight": torch.zeros(1)})
    weights = state("uvit")
    with pytest.raises(ValueError, match="missing from the checkpoint: blocks.3.skip.bias"):
        convert({key: value for key, value in weights.items() if key != "out_blocks.0.skip_linear.bias"}, heads=2)


def test_a_checkpoint_is_imported_by_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pipeline.published.maskgit.HEADS", {32: 2})
    save_file(state("uvit"), tmp_path / "generator.safetensors")
    import_checkpoint(["maskgit", str(tmp_path / "generator.safetensors"), str(tmp_path / "out")])
    assert "network, objective" in capsys.readouterr().out
    again = BidirectionalTransformer.from_pretrained(tmp_path / "out" / "network")
    assert torch.equal(again.token_embedding.tables[0].weight, state("uvit")["embeddings.weight"][:37])


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
def test_compiled_blocks_are_eager_ones_and_compile_once(body):
    from torch._dynamo.utils import counters

    model = network(body=body, depth=5, **DROPPING).train()
    ids, masked, condition = request(model)
    expected = [model(ids, masked, condition, dropout=d) for d in (None, draws(), draws(1))]
    model.compile_repeated_blocks(fullgraph=True)
    counters.clear()
    for aim, dropout in zip(expected, (None, draws(), draws(1))):
        assert torch.allclose(model(ids, masked, condition, dropout=dropout), aim, atol=1e-4)
    assert counters["stats"]["unique_graphs"] <= (2 if body == "bert" else 4)
