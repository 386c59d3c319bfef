"""LightningDiT: the network, its two losses, and Euler trajectories with guidance in an interval and shifted times."""

import torch
from support.published_sampling import BothHalves, code, forward, guided_channels, guided_trajectory, imported, length
from torch import Tensor, nn

from golden_kinds import Case, bare, grid, sequence
from pipeline.code import Condition
from pipeline.objectives.flow_matching import FlowMatching, FlowRandomness
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.levels import ladder

MATCHES = "models.lightningdit.LightningDiT"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    network = bare(imported(case, "lightningdit")["network"])
    states = calls(case, network) | odes(case, network)
    maps = {name: grid(value, *network.config.grid) for name, value in states.items()}
    return maps | losses(case, network) | times(case)


def guidance_of(case: Case, interval: bool = True) -> Guidance:
    call = ("forward_with_cfg(",)
    start = case.number("cfg_interval_start", *call) if interval else 0.0
    return Guidance(case.number("cfg_scale", *call), interval=(0.0, 1 - start), channels=guided_channels(case))


def calls(case: Case, network: nn.Module) -> dict[str, Tensor]:
    inputs = case.inputs

    def guided(time: Tensor, interval: bool = True) -> Tensor:
        both = BothHalves(network, guidance_of(case, interval))
        return -forward(both, inputs["cfg_x"], 1 - time, inputs["cfg_y"])

    return {
        "forward": -forward(network, inputs["x"], 1 - inputs["t"], inputs["y"]),
        "forward_with_cfg_interval_below": guided(inputs["cfg_t_below"]),
        "forward_with_cfg_interval_above": guided(inputs["cfg_t_above"]),
        "forward_with_cfg_no_interval": guided(inputs["cfg_t_below"], interval=False),
    }


def losses(case: Case, network: nn.Module) -> dict[str, Tensor]:
    inputs, objective = case.inputs, FlowMatching(cosine=True)
    condition, noise = Condition(labels=inputs["y"]), sequence(inputs["x0"])
    terms = objective.per_image(network, code(inputs["x1"]), condition, FlowRandomness(1 - inputs["t"], noise))
    return {"training_loss": terms["flow"], "training_cos_loss": terms["cosine"]}


def odes(case: Case, network: nn.Module) -> dict[str, Tensor]:
    start, found = sequence(case.inputs["sample_noise"])[None], {}
    for name, shift in (("shifted", shift_of(case)), ("unshifted", 1.0)):
        output = f"ode_euler_{name}_trajectory"
        steps = length(case, output) - 1
        states = guided_trajectory(case, FlowMatching(), network, steps, guidance_of(case), shift=shift)
        found[output] = torch.cat([start, states])
    return found


def shift_of(case: Case) -> float:
    """Their shift s of t is the shift 1/s of the noise level."""
    return 1 / case.number("timestep_shift", "Euler ODE")


def times(case: Case) -> dict[str, Tensor]:
    return {"ode_shifted_times": 1 - torch.tensor(ladder(length(case, "ode_shifted_times") - 1, shift_of(case)))}
