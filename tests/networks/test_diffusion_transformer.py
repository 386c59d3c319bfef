"""The diffusion transformer: its invariants, its switches, its published sizes, and how diffusers handles it."""

import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pipeline.code import Condition
from pipeline.components import Arguments, build
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.nn import attention as door
from pipeline.nn.blocks import ModulatedBlock, RMSNorm
from pipeline.nn.embeddings import (
    coordinates,
    fixed_positions,
    patchify,
    rotary_tables,
    rotate,
    sinusoid,
    unpatchify,
)

ROOT = Path(__file__).parents[2]
SIZE = {"depth": 2, "width": 16, "heads": 2}
DIT = {"patch_size": 2, "position": "fixed"}
SIT = DIT | {"time_scale": 1.0, "time_direction": "data"}
LIGHTNINGDIT = {
    "position": "rotary_and_fixed",
    "norm": "rms",
    "feed_forward": "swiglu",
    "query_key_norm": True,
    "time_scale": 1.0,
    "time_direction": "data",
}


def network(grid=(4, 4), **arguments) -> DiffusionTransformer:
    """Small, with every weight random, so that no gate hides a branch."""
    model = DiffusionTransformer(list(grid), **({"dim": 3, "num_classes": 5} | SIZE | arguments))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def request(model: DiffusionTransformer, batch: int = 3):
    tokens, classes = torch.Size(model.config.grid).numel(), model.config.num_classes
    labels = torch.arange(batch) % classes if classes else None
    return torch.randn(batch, tokens, model.config.dim), torch.linspace(0.1, 0.9, batch), Condition(labels=labels)


def test_a_new_network_predicts_zero_and_its_blocks_are_the_identity():
    model = DiffusionTransformer([4, 4], 3, 5, **SIZE)
    assert not model(*request(model)).any()
    h = torch.randn(2, 16, 16)
    assert torch.equal(model.blocks[0](h, torch.randn(2, 16)), h)


@pytest.mark.parametrize("position", ["fixed", "learned", "rotary", "rotary_and_fixed"])
def test_tokens_know_where_they_stand(position):
    model = network(position=position)
    z, time, condition = request(model)
    order = torch.randperm(16)
    assert not torch.allclose(model(z[:, order], time, condition), model(z, time, condition)[:, order], atol=1e-3)


def test_rotary_positions_are_relative():
    cosines, sines = rotary_tables([5, 7], 8)
    q, k = (rotate(torch.randn(8).expand(35, 8), cosines, sines) for _ in range(2))
    scores = (q @ k.T).view(5, 7, 5, 7)
    assert torch.allclose(scores[0, 0, 2, 3], scores[2, 1, 4, 4], atol=1e-5)
    assert not torch.allclose(scores[0, 0, 2, 3], scores[0, 0, 3, 2], atol=1e-3)
    assert torch.allclose(q.norm(dim=-1), q.norm(dim=-1)[:1].expand(35), atol=1e-5)


def test_fixed_positions_differ_at_every_position():
    table = fixed_positions([3, 4], 16)
    assert (torch.cdist(table, table) + torch.eye(12) > 0.1).all()
    assert torch.equal(table[4, :8], table[0, :8]) and torch.equal(table[1, 8:], table[0, 8:])  # columns come first
    assert torch.allclose(table[5, [8, 12]], torch.tensor([math.sin(1), math.cos(1)]))
    assert coordinates([2, 3]).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_patches_are_squares_and_come_back():
    x = torch.randn(2, 24, 3)
    patches = patchify(x, [4, 6], 2)
    square = x.view(2, 4, 6, 3)[:, 2:4, 0:2].reshape(2, 12)
    assert torch.equal(patches[:, 3], square) and torch.equal(unpatchify(patches, [4, 6], 2), x)
    assert torch.equal(unpatchify(patchify(x, [24], 4), [24], 4), x)


def test_time_stays_exact_whatever_the_precision():
    assert not torch.equal(sinusoid(torch.tensor([0.981 * 1000]), 8), sinusoid(torch.tensor([0.980 * 1000]), 8))
    model = network().bfloat16()
    z, _, condition = request(model)
    seen = []
    model.time_embedding.up.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(z.bfloat16(), torch.tensor([0.981, 0.980, 0.5]), condition)
    assert torch.equal(seen[0], sinusoid(torch.tensor([981.0, 980.0, 500.0]), 256).bfloat16())


def test_data_time_runs_the_other_way():
    model, other = network(), network(time_direction="data")
    other.load_state_dict(model.state_dict())
    z, time, condition = request(model)
    assert torch.allclose(model(z, time, condition), other(z, 1 - time, condition), atol=1e-4)


def test_rms_norm_has_unit_mean_square():
    x = 3 * torch.randn(4, 64)
    assert torch.allclose(RMSNorm(64)(x).square().mean(-1), torch.ones(4), atol=1e-4)
    assert torch.allclose(RMSNorm(64)(x), torch.nn.functional.rms_norm(x, (64,), eps=1e-6), atol=1e-6)


@pytest.mark.parametrize("arguments", [DIT, LIGHTNINGDIT], ids=["dit", "lightningdit"])
def test_taps_are_the_hidden_states_after_these_blocks(arguments):
    model = network(depth=3, **arguments)
    inputs, seen = request(model), {}
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda _, args, h, number=number: seen.update({number: h}))
    prediction, (last, first) = model(*inputs, taps=[3, 1])
    assert torch.equal(prediction, model(*inputs))
    assert first.shape == (3, 16 // arguments.get("patch_size", 1) ** 2, 16)
    assert torch.equal(first, seen[1]) and torch.equal(last, seen[3]) and not torch.equal(first, last)
    seen.clear()
    second, first_again = model.tap_blocks(*inputs, [2, 1])
    assert torch.equal(second, seen[2]) and torch.equal(first_again, first) and set(seen) == {1, 2}


def test_gradients_through_a_tap_reach_the_blocks_up_to_it_alone():
    model, gradients = network(depth=3, **LIGHTNINGDIT), []
    for enable in (model.disable_gradient_checkpointing, model.enable_gradient_checkpointing):
        enable()
        model.zero_grad()
        _, (h,) = model(*request_of_one_seed(model), taps=(2,))
        h.square().sum().backward()
        reached = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert not [name for name in reached if name.startswith(("blocks.2.", "head."))]
        assert {name.split(".")[1] for name in reached if name.startswith("blocks.")} == {"0", "1"}
        gradients.append(reached)
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def request_of_one_seed(model: DiffusionTransformer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return request(model)


@pytest.mark.parametrize("taps", [(0,), (1, 3), (-1,)])
def test_a_tap_that_is_no_block_is_one_line(taps):
    model = network()
    with pytest.raises(ValueError, match="blocks 1 to 2"):
        model(*request(model), taps=taps)


def test_attention_backends_agree():
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    model = network(**LIGHTNINGDIT)
    z, time, condition = request(model)
    expected, before = model(z, time, condition), _AttentionBackendRegistry._active_backend
    with door.backend("written_out"):
        assert torch.allclose(model(z, time, condition), expected, atol=1e-5)
    try:
        model.set_attention_backend("_native_math")
        chosen = {processor._attention_backend for processor in model.attn_processors.values()}
        assert len(model.attn_processors) == 2 and chosen == {AttentionBackendName._NATIVE_MATH}
        assert torch.allclose(model(z, time, condition), expected, atol=1e-5)
        model.reset_attention_backend()
        assert {processor._attention_backend for processor in model.attn_processors.values()} == {None}
    finally:
        _AttentionBackendRegistry.set_active_backend(before)


def test_first_block_cache_skips_blocks():
    from diffusers import FirstBlockCacheConfig

    model = network(depth=3)
    z, time, condition = request(model)
    expected, calls = model(z, time, condition), []
    model.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    model.blocks[1].attention.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), model.cache_context("cond"):
        first, second = model(z, time, condition), model(z, time, condition)
    assert len(calls) == 1
    assert torch.allclose(first, expected, atol=1e-5) and torch.allclose(second, expected, atol=1e-4)


def test_layerwise_casting_keeps_what_must_stay_exact():
    model = network(**LIGHTNINGDIT)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert {"time_embedding.up.weight", "blocks.0.modulation.weight", "blocks.0.norm1.weight"} <= kept
    assert "blocks.0.attention.qkv.weight" not in kept
    assert model(*request(model)).isfinite().all()


def test_a_network_loaded_in_half_the_bits_is_nearly_the_same(tmp_path):
    model = network(**LIGHTNINGDIT)
    z, time, condition = request(model)
    model.save_pretrained(tmp_path)
    half = DiffusionTransformer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    exact, rough = model(z, time, condition), half(z.bfloat16(), time, condition)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).square().mean() < 1e-3 * exact.square().mean()


PUBLISHED = {  # parameters, the fixed position table counted as DiT does
    "dit_s2": 32.96e6,
    "dit_b2": 130.51e6,
    "dit_l2": 458.10e6,
    "dit_xl2": 675.13e6,
    "sit_s2": 33e6,
    "sit_b2": 130e6,
    "sit_l2": 458e6,
    "sit_xl2": 675e6,
    "lightningdit_b1": 130e6,
    "lightningdit_l1": 458e6,
    "lightningdit_xl1": 675e6,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    node = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "networks" / f"{name}.yaml"))["generator"][
        "network"
    ]
    latents = {"grid": [16, 16], "dim": 32} if name.startswith("lightningdit") else {"grid": [32, 32], "dim": 4}
    with torch.device("meta"):
        model = build("networks", node, **latents, num_classes=1000, outputs=2 if name.startswith("dit") else 1)
    count = sum(p.numel() for p in model.parameters()) + model.positions.numel()
    assert abs(count / PUBLISHED[name] - 1) < 0.005


def test_every_published_size_has_a_fragment_and_a_count():
    assert {path.stem for path in (ROOT / "configs" / "networks").glob("*it_*.yaml")} >= set(PUBLISHED)


@pytest.mark.parametrize(
    "grid, arguments, message",
    [
        ([4, 4], {"heads": 3}, "not divisible by heads 3"),
        ([5, 4], {"patch_size": 2}, "does not divide the grid"),
        ([4, 4, 4], {}, "one or two axes"),
        ([4, 4], {"width": 18, "heads": 3}, "width divisible by 4"),
        ([4, 4], {"width": 24, "heads": 4, "position": "rotary"}, "width / heads divisible by 4"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(grid, arguments, message):
    arguments = {"grid": grid} | {"dim": 3, "num_classes": 5} | SIZE | arguments
    complete = Arguments.complete(DiffusionTransformer, arguments)
    for attempt in (lambda: DiffusionTransformer.validate(complete), lambda: DiffusionTransformer(**arguments)):
        with pytest.raises(ValueError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_wrong_calls_are_one_line():
    model = network(num_classes=0)
    z, time, _ = request(model)
    with pytest.raises(ValueError, match="call it without labels"):
        model(z, time, Condition(labels=torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(ValueError, match="does not fit the network's grid"):
        model(z[:, :15], time)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [DIT, LIGHTNINGDIT], ids=["dit", "lightningdit"])
def test_compiled_is_eager(arguments):
    model = network(**arguments)
    z, time, condition = request(model)
    expected = model(z, time, condition)
    whole = torch.compile(model, fullgraph=True)
    assert torch.allclose(whole(z, time, condition), expected, atol=1e-5)
    model.compile_repeated_blocks(fullgraph=True)
    assert all(isinstance(block, ModulatedBlock) for block in model.blocks)
    assert torch.allclose(model(z, time, condition), expected, atol=1e-5)
    prediction, (h,) = model(z, time, condition, taps=(1,))
    assert torch.allclose(prediction, expected, atol=1e-5) and h.shape == (3, math.prod(inner(model)), 16)
    (prediction.square().sum() + h.square().sum()).backward()


def inner(model: DiffusionTransformer) -> list[int]:
    return [size // model.config.patch_size for size in model.config.grid]
