"""The wide-head transformer: what its two parts are told, its taps, its published sizes, and how it is kept."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from pipeline.code import Condition
from pipeline.components import Arguments, build
from pipeline.networks.wide_head_transformer import WideHeadTransformer
from pipeline.nn.embeddings import GaussianTimeEmbedding

ROOT = Path(__file__).parents[2]
SIZE = {"depth": 2, "width": 16, "heads": 2, "head_depth": 1, "head_width": 24, "head_heads": 3}


def network(grid=(4, 4), **arguments) -> WideHeadTransformer:
    """Small, with every weight random, so that no gate hides a branch."""
    model = WideHeadTransformer(list(grid), **({"dim": 3, "num_classes": 5} | SIZE | arguments))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def request(model: WideHeadTransformer, batch: int = 3) -> tuple[Tensor, Tensor, Condition]:
    tokens, classes = torch.Size(model.config.grid).numel(), model.config.num_classes
    labels = torch.arange(batch) % classes if classes else None
    return torch.randn(batch, tokens, model.config.dim), torch.linspace(0.1, 0.9, batch), Condition(labels=labels)


def test_a_new_network_predicts_zero():
    model = WideHeadTransformer([4, 4], 3, 5, **SIZE)
    assert not model(*request(model)).any()


def test_the_head_is_modulated_per_token_by_the_trunk_and_the_time():
    model, seen = network(), {}
    z, time, condition = request(model)
    model.blocks[-1].register_forward_hook(lambda _, args, out: seen.update(trunk=out))
    model.head_blocks[0].register_forward_hook(lambda _, args, out: seen.update(x=args[0], request=args[1]))
    model(z, time, condition)
    silu = torch.nn.functional.silu
    told = silu(model.head_request(silu(seen["trunk"] + model.time_embedding(time)[:, None])))
    assert torch.equal(seen["request"], told) and told.shape == (3, 16, 24)
    assert torch.equal(seen["x"], model.head_embedding(z))  # the noisy code itself, with no place added


def test_noise_of_one_token_passes_the_narrow_trunk_by():
    """A head whose request is held fixed still answers each token's own channels: RAE's condition for denoising."""
    model = network(head_width=48, head_heads=2)
    with torch.no_grad():
        for parameter in model.head_request.parameters():
            parameter.zero_()
    z, time, condition = request(model)
    answer = model(z, time, condition)
    assert not torch.allclose(answer, model(z + torch.randn_like(z), time, condition), atol=1e-2)
    other = Condition(labels=(condition.labels + 1) % 5)
    assert torch.allclose(answer, model(z, time, other), atol=1e-6)  # and class reaches it by the request alone


def test_taps_are_of_the_trunk():
    model = network()
    inputs, seen = request(model), []
    model.blocks[0].register_forward_hook(lambda _, args, h: seen.append(h))
    prediction, (first,) = model(*inputs, taps=(1,))
    assert torch.equal(prediction, model(*inputs)) and torch.equal(first, seen[0]) and first.shape == (3, 16, 16)
    assert torch.equal(model.tap_blocks(*inputs, (1,))[0], first)
    with pytest.raises(ValueError, match="blocks 1 to 2"):
        model(*inputs, taps=(3,))


def test_data_time_runs_the_other_way():
    model, other = network(), network(time_direction="data")
    other.load_state_dict(model.state_dict())
    z, time, condition = request(model)
    assert torch.allclose(model(z, time, condition), other(z, 1 - time, condition), atol=1e-4)


def test_new_weights_are_xaviers_or_those_of_the_release():
    """There linear layers are torch's (std 1 / sqrt(3 n) of n inputs), but for the embeddings; gates are zero."""
    for kind in ("xavier", "torch"):
        model = WideHeadTransformer([4, 4], 3, 5, depth=2, width=64, heads=4, head_width=128, initialisation=kind)
        for name in ("patch_embedding", "head_embedding"):
            layer = model.get_submodule(name)
            assert layer.bias.eq(0).all() and abs(layer.weight.std() / (2 / sum(layer.weight.shape)) ** 0.5 - 1) < 0.1
        layer = model.blocks[1].attention.qkv
        expected = (2 / sum(layer.weight.shape)) ** 0.5 if kind == "xavier" else (3 * 64) ** -0.5
        assert abs(layer.weight.std() / expected - 1) < 0.05 and layer.bias.eq(0).all() == (kind == "xavier")
        assert abs(model.time_embedding.down.weight.std() / 0.02 - 1) < 0.1
        gates = [block.modulation for block in (*model.blocks, *model.head_blocks)]
        for layer in (*gates, model.head.modulation, model.head.linear):
            assert layer.weight.eq(0).all() and layer.bias.eq(0).all()


def test_gaussian_frequencies_are_two_pi_times_the_stored_ones():
    embedding = GaussianTimeEmbedding(4, frequencies=2)
    embedding.frequencies.copy_(torch.tensor([0.25, -0.5]))
    seen = []
    embedding.up.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    embedding(torch.tensor([1.0]))
    torch.testing.assert_close(seen[0], torch.tensor([[1.0, 0.0, 0.0, -1.0]]), atol=1e-6, rtol=0)


def test_loaded_in_half_the_bits_times_stay_exact(tmp_path):
    model = network()
    z, time, condition = request(model)
    model.save_pretrained(tmp_path)
    half = WideHeadTransformer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert torch.equal(half.time_embedding.frequencies, model.time_embedding.frequencies)
    exact, rough = model(z, time, condition), half(z.bfloat16(), time, condition)
    assert rough.dtype == torch.bfloat16 and (rough - exact).square().mean() < 1e-3 * exact.square().mean()


@pytest.mark.parametrize(
    "name, dim, published", [("ditdh_xl", 768, 839e6), ("ditdh_xl", 128, 835e6), ("ditdh_s", 768, 196.5e6)]
)
def test_published_sizes(name, dim, published):
    recipe = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "networks" / f"{name}.yaml"))
    with torch.device("meta"):
        model = build("networks", recipe["generator"]["network"], grid=[16, 16], dim=dim, num_classes=1000, outputs=1)
    count = sum(p.numel() for p in model.parameters()) + model.positions.numel()
    assert abs(count / published - 1) < 0.001


@pytest.mark.parametrize(
    "grid, arguments, message",
    [
        ([4, 4], {"heads": 3}, "not divisible by heads 3"),
        ([4, 4], {"head_heads": 5}, "not divisible by head_heads 5"),
        ([5, 4], {"patch_size": 2}, "does not divide the grid"),
        ([4, 4, 4], {}, "one or two axes"),
        ([4, 4], {"head_width": 18, "head_heads": 3}, "width / heads divisible by 4"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(grid, arguments, message):
    arguments = {"grid": grid} | {"dim": 3, "num_classes": 5} | SIZE | arguments
    complete = Arguments.complete(WideHeadTransformer, arguments)
    for attempt in (lambda: WideHeadTransformer.validate(complete), lambda: WideHeadTransformer(**arguments)):
        with pytest.raises(ValueError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)
