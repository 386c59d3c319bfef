"""SiT: the network, the three paths, the losses of every prediction, and ODE and SDE trajectories."""

import torch
from support.published_sampling import (
    BothHalves,
    code,
    forward,
    guided_channels,
    guided_trajectory,
    imported,
    length,
    trajectory,
)
from torch import Tensor, nn

from golden_kinds import Case, bare, grid, sequence
from pipeline.code import Condition
from pipeline.objectives.flow_matching import FlowMatching, FlowRandomness
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.paths import PATHS

MATCHES = "models.SiT"

OURS = {"linear": "linear", "gvp": "trigonometric", "vp": "variance_preserving"}


class TowardsData(nn.Module):
    """The network with SiT's own sign: the importer turned velocities towards data into velocities towards noise."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *arguments) -> Tensor:
        return -self.network(*arguments)


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    network = bare(imported(case, "sit")["network"])
    found = calls(case, network) | paths(case) | odes(case, network) | sdes(case, network)
    return {name: grid(value, *network.config.grid) for name, value in found.items()} | losses(case, network)


def guidance_of(case: Case, *words: str) -> Guidance:
    return Guidance(case.number("cfg_scale", *words), channels=guided_channels(case))


def calls(case: Case, network: nn.Module) -> dict[str, Tensor]:
    inputs = case.inputs
    both = BothHalves(network, guidance_of(case, "forward_with_cfg("))
    return {
        "forward": -forward(network, inputs["x"], 1 - inputs["t"], inputs["y"]),
        "forward_with_cfg": -forward(both, inputs["cfg_x"], 1 - inputs["cfg_t"], inputs["cfg_y"]),
    }


def paths(case: Case) -> dict[str, Tensor]:
    noise, data = sequence(case.inputs["x0"]), sequence(case.inputs["x1"])
    u, found = 1 - case.inputs["t"][:, None, None], {}
    for name, ours in OURS.items():
        path = PATHS[ours]
        z, velocity = path.state(data, noise, u), path.velocity(data, noise, u)
        found |= {
            f"path_{name}_xt": z,
            f"path_{name}_ut": -velocity,
            f"path_{name}_drift_mean": path.log_alpha_rate(u) * z,
            f"path_{name}_drift_var": path.diffusion(u).expand_as(z),
            f"path_{name}_score_from_velocity": path.score_from_velocity(velocity, z, u),
            f"path_{name}_noise_from_velocity": path.noise_from_velocity(velocity, z, u),
        }
    return found


def losses(case: Case, network: nn.Module) -> dict[str, Tensor]:
    """`loss_PATH_PREDICTION` or `loss_PATH_PREDICTION_WEIGHT_weight`."""
    found = {}
    for name in (name for name in case.stored_names() if name.startswith("loss_")):
        _, path, prediction, weighting, *_ = [*name.split("_"), "none"]
        objective = FlowMatching(path=OURS[path], prediction=prediction, weighting=weighting)
        asked = network if prediction == "velocity" else TowardsData(network)
        condition, noise = Condition(labels=case.inputs["y"]), sequence(case.inputs["x0"])
        randomness = FlowRandomness(1 - case.inputs["t"], noise)
        terms = objective.per_image(asked, code(case.inputs["x1"]), condition, randomness)
        found[name] = terms["flow"]
    return found


def odes(case: Case, network: nn.Module) -> dict[str, Tensor]:
    guidance, linear = guidance_of(case, "Euler ODE", "cfg_scale"), FlowMatching()
    start = sequence(case.inputs["sample_noise"])[None]
    steps = length(case, "ode_euler_trajectory") - 1
    accurate = guided_trajectory(case, linear, network, 200, guidance, solver="unipc")
    plain = trajectory(case, FlowMatching(path="trigonometric"), network, length(case, "ode_gvp_euler_trajectory") - 1)
    return {
        "ode_euler_trajectory": torch.cat([start, guided_trajectory(case, linear, network, steps, guidance)]),
        "ode_accurate_final": accurate[-1],
        "ode_gvp_euler_trajectory": torch.cat([start, plain]),
    }


def sdes(case: Case, network: nn.Module) -> dict[str, Tensor]:
    """`sde_DIFFUSION_LAST_trajectory` or `sde_heun_DIFFUSION_LAST_trajectory`."""
    stated = {name: case.number(name, "SDE sampling") for name in ("num_steps", "diffusion_norm", "last_step_size")}
    guidance, found = guidance_of(case, "Euler ODE", "cfg_scale"), {}
    for name in (name for name in case.stored_names() if name.startswith("sde_")):
        *form, last = name.removesuffix("_trajectory").removeprefix("sde_").split("_")
        solver = "sde_heun" if form[0] == "heun" else "sde"
        intervals = int(stated["num_steps"]) - 1
        states = guided_trajectory(
            case,
            FlowMatching(),
            network,
            intervals * (2 if solver == "sde_heun" else 1) + (last != "none"),
            guidance,
            solver=solver,
            diffusion="_".join(form).removeprefix("heun_"),
            diffusion_scale=stated["diffusion_norm"],
            last_step=last,
            last_step_size=stated["last_step_size"],
        )
        found[name] = torch.cat([states, states[-1:]]) if last == "none" else states
    return found
