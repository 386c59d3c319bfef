"""The causal transformer: what it may see, its cache, its switches, its published sizes, how diffusers handles it."""

import importlib
import math
from pathlib import Path

import pytest
import torch
from contracts import ACROSS, TEXT, condition_of
from omegaconf import OmegaConf
from torch import Tensor

from pipeline.code import Condition
from pipeline.components import Arguments, build
from pipeline.draws import StepDraws
from pipeline.networks.causal_transformer import CausalTransformer
from pipeline.nn import attention as door
from pipeline.nn.causal import Cache, CausalBlock, ModulatedCausalBlock
from pipeline.publishing.self_contained import pack

ROOT = Path(__file__).parents[2]
SIZE = {"vocab": 11, "num_classes": 5, "depth": 2, "width": 16, "heads": 2}
RAR = {
    "position": "learned",
    "start_token": True,
    "target_positions": True,
    "modulated": True,
    "norm": "layer",
    "query_key_norm": True,
    "feed_forward": "gelu",
    "bias": True,
}
VARIANTS = {
    "llamagen": ([3, 4], {"prefix_rotary": "zero", "feed_forward_multiple": 8}),
    "sequence": ([3, 4], {"position": "rotary_sequence"}),
    "learned": ([3, 4], {"position": "learned", "query_key_norm": True}),
    "rar": ([3, 4], RAR),
    "modulated_rotary": ([3, 4], {"modulated": True, "target_positions": True}),
    "one_axis": ([6], {}),
    "codebooks": ([2, 3], {"codebooks": 3}),
    "sub_tokens": ([2, 3], {"codebooks": 3, "head_depth": 2, "prefix_rotary": "zero"}),
    "sub_tokens_rar": ([2, 3], RAR | {"codebooks": 2, "head_depth": 1}),
    "sub_tokens_text": ([2, 3], TEXT | {"num_classes": 0, "codebooks": 3, "head_depth": 1}),
    "unconditional": ([2, 3], {"num_classes": 0}),
    "unconditional_rar": ([2, 3], RAR | {"num_classes": 0, "codebooks": 2}),
    "text": ([2, 3], TEXT | {"num_classes": 0}),
    "text_and_class": ([2, 3], TEXT | {"pooled_dim": 3, "position": "learned"}),
    "text_rar": ([2, 3], RAR | TEXT | {"num_classes": 0}),
    "text_across": ([2, 3], TEXT | ACROSS | {"modulated": True, "target_positions": True, "codebooks": 2}),
    "text_pooled": ([2, 3], TEXT | {"text_reading": "pooled", "num_classes": 0}),
}
every_variant = pytest.mark.parametrize("grid, arguments", VARIANTS.values(), ids=VARIANTS)


def network(grid=(3, 4), **arguments) -> CausalTransformer:
    """Small, with every weight random, so that no gate hides a branch."""
    model = CausalTransformer(list(grid), **(SIZE | arguments))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def request(model: CausalTransformer, batch: int = 3) -> tuple[Tensor, Condition | None]:
    config = model.config
    shape = (batch, model.tokens, config.codebooks) if config.codebooks > 1 else (batch, model.tokens)
    return torch.randint(config.vocab, shape), condition_of(model, batch)


def orders(batch: int, tokens: int) -> Tensor:
    return torch.stack([torch.randperm(tokens) for _ in range(batch)])


def token_by_token(model: CausalTransformer, ids: Tensor, condition: Condition | None, order: Tensor | None) -> Tensor:
    """The logits that `advance` offers while it is told `ids` [B, N, codebooks], stacked as `forward` has them."""
    memory, last, offered = model.begin(len(ids), condition, order), None, []
    for i in range(model.tokens):

        def choose(logits: Tensor, codebook: int, i: int = i) -> Tensor:
            offered.append(logits)
            return ids[:, i : i + 1, codebook]

        assert torch.equal(model.advance(memory, last, choose), ids[:, i])
        last = ids[:, i]
    return torch.cat(offered, dim=1).unflatten(1, (model.tokens, -1))


@every_variant
def test_logits_depend_on_earlier_ids_alone(grid, arguments):
    model = network(grid, **arguments)
    ids, condition = request(model)
    ids, order = ids.view(3, model.tokens, -1), orders(3, model.tokens)
    before = model(ids, condition, order)
    for place in (0, 2, model.tokens - 1):
        for codebook in range(ids.shape[2]):
            other = ids.clone()
            other[:, place, codebook] = (other[:, place, codebook] + 1) % 11
            changed = (model(other, condition, order) - before).abs().amax(dim=(0, 3)) > 1e-5  # [N, codebooks]
            later = torch.zeros_like(changed)
            later[place + 1 :] = True
            later[place, codebook + 1 :] = True
            assert torch.equal(changed, later)


@every_variant
@pytest.mark.parametrize("ordered", [False, True], ids=["row_by_row", "ordered"])
@torch.no_grad()
def test_token_by_token_is_all_at_once(grid, arguments, ordered):
    model = network(grid, **arguments)
    ids, condition = request(model)
    order = orders(3, model.tokens) if ordered else None
    found = token_by_token(model, ids.view(3, model.tokens, -1), condition, order)
    assert torch.allclose(found, model(ids, condition, order), atol=1e-4)


@pytest.mark.parametrize("arguments", [{}, RAR], ids=["llamagen", "rar"])
def test_the_row_by_row_order_is_none_and_another_is_another(arguments):
    model = network(**arguments)
    ids, condition = request(model)
    plain = model(ids, condition)
    assert torch.allclose(model(ids, condition, torch.arange(12).expand(3, -1)), plain, atol=1e-5)
    swapped = torch.arange(12).expand(3, -1).clone()
    swapped[:, [7, 9]] = swapped[:, [9, 7]]
    changed = (model(ids, condition, swapped) - plain).abs().amax(dim=(0, 2, 3)) > 1e-4
    first = 7 if "target_positions" in arguments else 8  # who is told its target knows it at once
    assert changed.nonzero().flatten().tolist() == list(range(first, 12))


def test_a_cache_is_allocated_once_and_read_as_far_as_it_is_filled():
    cache, stored = Cache(5), torch.randn(2, 2, 3, 5, 4)
    for first, last in ((0, 2), (2, 3), (3, 5)):
        keys, values = cache.append(*stored[..., first:last, :])
        assert torch.equal(torch.stack([keys, values]), stored[..., :last, :])
        assert cache.keys.shape == (2, 3, 5, 4) and keys.data_ptr() == cache.keys.data_ptr()
    cache.narrow(1)
    assert torch.equal(cache.keys, stored[0, :1])


@torch.no_grad()
def test_a_memory_continues_with_its_first_rows():
    for arguments in ({}, RAR, RAR | TEXT, TEXT | ACROSS):
        model = network(**arguments)
        ids, condition = request(model)
        order = orders(3, 12)
        expected, memory, last = model(ids, condition, order), model.begin(3, condition, order), None
        for i in range(12):
            offered = []
            if i == 4:
                memory.narrow(2)
                last = last[:2]
            rows = ids[: 3 if i < 4 else 2, i : i + 1]
            last = model.advance(memory, last, lambda logits, _, o=offered, r=rows: o.append(logits) or r)
            assert torch.allclose(offered[0], expected[: len(rows), i], atol=1e-4)


def test_a_new_network_finds_every_id_as_likely_and_new_modulated_blocks_are_the_identity():
    model = CausalTransformer([3, 4], **SIZE, modulated=True)
    assert not model(*request(model)).any()
    h = torch.randn(2, 12, 16)
    assert torch.equal(model.blocks[0](h, torch.randn(2, 12, 16)), h)


def test_a_head_that_does_not_begin_at_zero_is_drawn_as_the_other_layers():
    logits = CausalTransformer([16, 16], **SIZE | {"vocab": 512}, zero_head=False).head.outputs[0].weight
    assert 0.018 < logits.std() < 0.022


def test_a_prefix_at_zero_has_no_query_and_no_key():
    rows = {kind: network(prefix_rotary=kind).cosines[0] for kind in ("none", "zero")}
    assert rows["none"].eq(1).all() and rows["zero"].eq(0).all()


DROPOUTS = {"token_dropout": 0.2, "residual_dropout": 0.3, "feed_forward_dropout": 0.1, "attention_dropout": 0.2}


@pytest.mark.parametrize("arguments", [{}, RAR], ids=["llamagen", "rar"])
def test_dropout_is_a_function_of_its_draws_whatever_the_split(arguments):
    model = network(**arguments, **DROPOUTS)
    ids, condition = request(model, 4)
    whole = model(ids, condition, dropout=StepDraws(0, 7, slice(0, 4), 4))
    for i in range(4):
        row = slice(i, i + 1)
        alone = model(ids[row], condition[row], dropout=StepDraws(0, 7, row, 4))
        assert torch.allclose(alone, whole[row], atol=1e-4)
    assert not torch.allclose(model(ids, condition, dropout=StepDraws(0, 8, slice(0, 4), 4)), whole, atol=1e-2)
    assert not torch.allclose(model(ids, condition), whole, atol=1e-2)


@pytest.mark.parametrize("name", DROPOUTS)
def test_each_dropout_acts_alone(name):
    model = network(**{name: 0.5})
    ids, condition = request(model)
    dropped = model(ids, condition, dropout=StepDraws(0, 0, slice(0, 3), 3))
    assert not torch.allclose(dropped, model(ids, condition), atol=1e-3)


def test_every_layer_has_masks_of_its_own():
    model, seen = network(**DROPOUTS), []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    ids, condition = request(model)
    model(ids, condition, dropout=StepDraws(0, 0, slice(0, 3), 3))
    masks = [mask.flatten(1)[:, :128] for each in seen for mask in each]
    assert len(masks) == 8 and not any(torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


@pytest.mark.parametrize("arguments", [{}, RAR], ids=["llamagen", "rar"])
@torch.no_grad()
def test_bfloat16_is_close(arguments):
    model = network(**arguments)
    ids, condition = request(model)
    exact = model(ids, condition)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = [model(ids, condition), token_by_token(model, ids[..., None], condition, None)]
    model.bfloat16()
    pure = [model(ids, condition), token_by_token(model, ids[..., None], condition, None)]
    assert all(rough.dtype == torch.bfloat16 for rough in pure)
    for rough in mixed + pure:
        assert (rough - exact).square().mean() < 2e-3 * exact.square().mean()


@torch.no_grad()
def test_attention_backends_agree():
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    model = network()
    ids, condition = request(model)
    expected, before = model(ids, condition), _AttentionBackendRegistry._active_backend
    with door.backend("written_out"):
        assert torch.allclose(model(ids, condition), expected, atol=1e-4)
    try:
        model.set_attention_backend("_native_math")
        chosen = {processor._attention_backend for processor in model.attn_processors.values()}
        assert len(model.attn_processors) == 2 and chosen == {AttentionBackendName._NATIVE_MATH}
        assert torch.allclose(model(ids, condition), expected, atol=1e-4)
        assert torch.allclose(token_by_token(model, ids[..., None], condition, None), expected, atol=1e-4)
        model.reset_attention_backend()
    finally:
        _AttentionBackendRegistry.set_active_backend(before)


def test_layerwise_casting_keeps_what_must_stay_exact():
    model = network(**RAR)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert {"positions", "token_embedding.tables.0.weight", "blocks.0.modulation.weight"} <= kept
    assert "blocks.0.attention.qkv.weight" not in kept
    assert model(*request(model)).isfinite().all()


def test_a_network_packed_into_one_file_is_the_same(tmp_path, monkeypatch):
    (tmp_path / "packed_network.py").write_text(pack("pipeline.networks.causal_transformer", "CausalTransformer", {}))
    monkeypatch.syspath_prepend(tmp_path)
    model = network(**RAR, **DROPOUTS)
    packed = importlib.import_module("packed_network").CausalTransformer(**model.config)
    packed.load_state_dict(model.state_dict())
    ids, condition = request(model)
    for draws in (None, StepDraws(0, 0, slice(0, 3), 3)):
        assert torch.equal(packed(ids, condition, dropout=draws), model(ids, condition, dropout=draws))


PUBLISHED = {
    "llamagen_b": 111e6,
    "llamagen_l": 343e6,
    "llamagen_xl": 775e6,
    "rar_b": 261e6,
    "rar_l": 461e6,
    "rar_xl": 955e6,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    fragment = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "networks" / f"{name}.yaml"))["generator"]
    vocab = 1024 if name.startswith("rar") else 16384
    with torch.device("meta"):
        model = build("networks", fragment["network"], grid=[16, 16], vocab=vocab, num_classes=1000)
    count = sum(p.numel() for p in model.parameters())
    if name.startswith("rar"):  # the published count has rows that no image reaches: spare positions and steps
        count += (1024 - 2 + 1024 + 100 - 2) * model.config.width
    assert abs(count / PUBLISHED[name] - 1) < 0.005


@pytest.mark.parametrize(
    "grid, arguments, message",
    [
        ([4, 4], {"heads": 3}, "not divisible by heads 3"),
        ([4, 4, 4], {}, "one or two axes"),
        ([4, 4], {"width": 24, "heads": 4}, "width / heads divisible by 4"),
        ([4, 4], {"width": 20, "heads": 4, "position": "rotary_sequence"}, "width / heads divisible by 2"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(grid, arguments, message):
    arguments = {"grid": grid} | SIZE | arguments
    complete = Arguments.complete(CausalTransformer, arguments)
    for attempt in (lambda: CausalTransformer.validate(complete), lambda: CausalTransformer(**arguments)):
        with pytest.raises(ValueError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_wrong_calls_are_one_line():
    model = network(num_classes=0)
    ids, _ = request(model)
    with pytest.raises(ValueError, match="call it without labels"):
        model(ids, Condition(labels=torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(ValueError, match="does not fit the network's grid"):
        model(ids[:, :11])


def test_feed_forward_widths_are_rounded_up():
    widths = [network(feed_forward_multiple=m).blocks[0].feed_forward.down.in_features for m in (1, 8, 256)]
    assert widths == [math.floor(8 / 3 * 16), 48, 256]
    assert network(feed_forward="gelu").blocks[0].feed_forward.down.in_features == 64


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, RAR, TEXT, RAR | TEXT | ACROSS], ids=["llamagen", "rar", "text", "across"])
def test_compiled_is_eager(arguments):
    model = network(**arguments, **DROPOUTS)
    ids, condition = request(model)
    plain, draws = model(ids, condition), StepDraws(0, 0, slice(0, 3), 3)
    expected = model(ids, condition, dropout=draws)
    model.compile_repeated_blocks(fullgraph=True)
    assert all(isinstance(block, (CausalBlock, ModulatedCausalBlock)) for block in model.blocks)
    found = model(ids, condition, dropout=draws)
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(model(ids, condition), plain, atol=1e-4)
    found.square().sum().backward()
