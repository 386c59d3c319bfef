"""How DiT, SiT and LightningDiT call their networks when they guide: two halves in one batch, both carried along."""

import re
from typing import Any

import generating
import torch
from golden_kinds import Case, sequence
from torch import Tensor, nn

from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import GivenDraws
from pipeline.objectives.base import Objective
from pipeline.samplers.guidance import Guidance, combine


def imported(case: Case, name: str) -> dict[str, Any]:
    """The network and objective of a transformer on noisy codes, with what its weights cannot tell."""
    stated = case.meta["constructor"]
    return case.imported(name, heads=stated["num_heads"], condition_drop=stated["class_dropout_prob"])


def sides(case: Case) -> tuple[int, int]:
    """Rows and columns of the code, which a constructor states as one number or two."""
    size = case.meta["constructor"]["input_size"]
    return (size, size) if isinstance(size, int) else tuple(size)


class BothHalves(nn.Module):
    """Asks about the first half of the states for both halves of the labels; guided channels go to both halves.

    The published samplers keep the second half of the batch as states of their own, which end elsewhere where a
    channel is not guided. This library has no second half; the wrapper exists to compare it.
    """

    def __init__(self, network: nn.Module, guidance: Guidance):
        super().__init__()
        self.network, self.guidance = network, guidance

    def forward(self, z: Tensor, time: Tensor, condition: Condition) -> Tensor:
        first = z[: len(z) // 2]
        conditional, unconditional = self.network(torch.cat([first, first]), time, condition).chunk(2)
        scale, channels = self.guidance.at(time[0].item()), self.guidance.channels
        guided = combine(conditional, unconditional, scale, channels)
        other = torch.cat([guided[..., :channels], unconditional[..., channels:]], dim=-1)
        return torch.cat([guided, other])


def guided_channels(case: Case) -> int:
    return 1 + int(re.search(r"channels 0\.\.(\d+)", case.call("forward_with_cfg(")).group(1))


def spec_of(case: Case) -> LatentSpec:
    return LatentSpec(grid=sides(case), dim=case.meta["constructor"]["in_channels"])


def length(case: Case, name: str) -> int:
    """The first axis of a stored output."""
    return case.meta["io"]["tensors"][f"output.{name}"]["shape"][0]


def given(case: Case, rows: slice = slice(None)) -> GivenDraws:
    """The start and the noise of every step, as the case states them."""
    noise = case.inputs.get("step_noise", torch.empty(0, 1, 1, 1, 1))
    steps = {f"step_{i}": sequence(row)[rows] for i, row in enumerate(noise)}
    return GivenDraws({"start": sequence(case.inputs["sample_noise"])[rows], **steps})


def trajectory(case: Case, objective: Objective, network: nn.Module, steps: int, rows=slice(None), **settings):
    """The states after every step, [steps, B, N, C]."""
    states: list[Tensor] = []
    condition = Condition(labels=case.inputs["sample_y"][rows])
    settings["on_step"] = lambda step, level, z: states.append(z)
    final = generating.sample(objective, network, condition, spec_of(case), given(case, rows), steps, **settings)
    assert torch.equal(final.z, states[-1])
    return torch.stack(states)


def guided_trajectory(
    case: Case, objective: Objective, network: nn.Module, steps: int, guidance: Guidance, **settings
) -> Tensor:
    """The first half by this library's guidance, the second by the published one.

    Both by the published one where class dropout is 0: what is guided away from is then labels that the case states.
    """
    half = len(case.inputs["sample_y"]) // 2
    if not case.meta["constructor"]["class_dropout_prob"]:
        return trajectory(case, objective, BothHalves(network, guidance), steps, **settings)
    ours = trajectory(case, objective, network, steps, slice(half), guidance=guidance, **settings)
    both = trajectory(case, objective, BothHalves(network, guidance), steps, **settings)
    return torch.cat([ours, both[:, half:]], dim=1)


def forward(network: nn.Module, images: Tensor, time: Tensor, labels: Tensor) -> Tensor:
    """[B, C, H, W] to [B, N, outputs * C], `time` being the noise level."""
    return network(sequence(images), time, Condition(labels=labels))


def code(images: Tensor) -> Code:
    return Code(z=sequence(images))
