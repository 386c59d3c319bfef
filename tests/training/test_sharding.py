"""Players that are divided among two processes: the same norm, step, average and whole weights as in one."""

import pytest
import torch
from support.two_processes import as_two
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from pipeline.code import Condition
from pipeline.components import find, kinds
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.recipes.loops import Loop
from pipeline.runs.sharding import Sharding, take_sharding
from pipeline.training.ema import Average
from pipeline.training.optimizing import check_divisible
from pipeline.training.sharding import (
    average_undivided_gradients,
    blocks_of,
    clip_gradients,
    divide,
    local,
    whole,
)

WHOLE = "blocks.1.attention.proj.weight"
LARGEST = 0.5  # of the gradient's norm, which is more


def network_of() -> DiffusionTransformer:
    torch.manual_seed(0)
    network = DiffusionTransformer([4, 4], 6, 5, depth=3, width=12, heads=2)
    for parameter in network.parameters():  # gates begin at zero, where blocks below have no gradient
        nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return network


def loss_of(network: nn.Module, rows: slice) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    z, times = torch.randn(4, 16, 6, generator=draw), torch.rand(4, generator=draw)
    return network(z[rows], times[rows], Condition(torch.arange(4)[rows])).square().mean()


def stepped(network: nn.Module, average: Average, rows: slice) -> float:
    """One step of gradient descent, clipped; the norm before."""
    loss_of(network, rows).backward()
    parameters = list(network.parameters())
    average_undivided_gradients(parameters)
    norm = clip_gradients(parameters, LARGEST)
    with torch.no_grad():
        for parameter in parameters:
            local(parameter).sub_(0.1 * local(parameter.grad))
    average.update(network, 100)
    return float(norm)


def in_half(rank: int) -> tuple[float, list[Tensor], dict[str, Tensor], dict[str, Tensor], Tensor]:
    torch.set_num_threads(1)
    network = network_of()
    average = Average(network, 0.5)
    average.divide(Sharding(), torch.device("cpu"), [WHOLE])
    divide(network, Sharding(), torch.device("cpu"), [WHOLE])
    image = loss_of(network, slice(2 * rank, 2 * rank + 2))
    at_layer = torch.autograd.grad(image, network.get_parameter(WHOLE))[0]  # as an adaptive weight asks for it
    norm = stepped(network, average, slice(2 * rank, 2 * rank + 2))
    state = {name: whole(value.detach()) for name, value in network.named_parameters()}
    return norm, list(network.parameters()), state, average.whole().state_dict(), at_layer


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    return as_two(in_half, tmp_path_factory.mktemp("halves"))


@pytest.fixture(scope="module")
def alone():
    network = network_of()
    average = Average(network, 0.5)
    return stepped(network, average, slice(0, 4)), network, average


def test_blocks_are_divided_and_the_rest_is_whole(halves, alone):
    _, network, _ = alone
    inside = {id(p) for block in blocks_of(network) for p in block.parameters()}
    for (name, plain), divided in zip(network.named_parameters(), halves[1], strict=True):
        assert isinstance(divided, DTensor) == (id(plain) in inside and name != WHOLE), name
        assert not isinstance(divided, DTensor) or local(divided).numel() <= (plain.numel() + plain[0].numel()) // 2


def test_norm_step_and_average_are_those_of_one_process(halves, alone):
    norm, _, state, average, _ = halves
    assert alone[0] > LARGEST and norm == pytest.approx(alone[0], rel=1e-5)
    torch.testing.assert_close(state, dict(alone[1].named_parameters()), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(average, dict(alone[2].module.state_dict()), rtol=1e-5, atol=1e-7)


def test_a_gradient_at_a_layer_that_stays_whole_is_at_hand_before_the_backward_pass(halves):
    network = network_of()
    expected = torch.autograd.grad(loss_of(network, slice(0, 2)), network.get_parameter(WHOLE))[0]
    torch.testing.assert_close(halves[4], expected)


def test_what_the_launcher_asks_for_is_taken_once(monkeypatch):
    assert take_sharding() is None
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    assert take_sharding() == Sharding(reshard_after_forward=True)
    assert take_sharding() is None


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"FSDP_VERSION": "1"}, "launch with --fsdp_version 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "launch with --fsdp_offload_params false"),
    ],
)
def test_what_is_not_supported_is_refused(settings, message, monkeypatch):
    for name, value in {"ACCELERATE_USE_FSDP": "true", **settings}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        take_sharding()


@pytest.mark.parametrize("slot, kind", [(slot, kind) for slot in ("tokenizers", "networks") for kind in kinds(slot)])
def test_a_model_of_every_kind_can_become_a_divided_one(slot, kind):
    """`fully_shard` changes an object's class, which python allows where the layouts of both are alike."""
    model = find(slot, kind)
    made = model.__new__(model)
    object.__setattr__(made, "__class__", type(f"FSDP{model.__name__}", (FSDPModule, model), {}))
    assert isinstance(made, FSDPModule)


def test_an_optimiser_that_needs_whole_parameters_is_refused():
    loop = Loop(1, {"network": 1e-3}, optimizer={"kind": "adamw8bit"})
    with pytest.raises(ValueError, match=r"^optimizer: adamw8bit \(network\) needs whole parameters; launch without"):
        check_divisible(loop, "network")
    check_divisible(Loop(1, {"network": 1e-3}, optimizer={"kind": "muon"}), "network")
