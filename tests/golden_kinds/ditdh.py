"""RAE's DiT^DH with a weaker second network: both forward passes, guidance and autoguidance, losses and solvers."""

import ast
import re

import torch
from support.published_sampling import code
from torch import Tensor, nn

from golden_kinds import Case, bare, grid, sequence
from pipeline.code import Condition
from pipeline.draws import GivenDraws
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.samplers.guidance import Guidance, guided
from pipeline.samplers.levels import ladder
from pipeline.solvers.euler import euler

MATCHES = "stage2.models.DDT.DiTwDDTHead"
NOT_OURS = {
    "sde_*": "the release shifts the grid of its stochastic solver, which then ends above the last step's level",
}
OURS = {  # parameters whose gradients are stored
    "s_embedder.proj": "patch_embedding",
    "x_embedder.proj": "head_embedding",
    "t_embedder.mlp.0": "time_embedding.up",
    "t_embedder.mlp.2": "time_embedding.down",
    "final_layer.adaLN_modulation.1": "head.modulation",
    "final_layer.linear": "head.linear",
}


def outputs(case: Case) -> dict[str, Tensor]:
    network, weak = network_of(case, "model"), network_of(case, "weak")
    with torch.no_grad():
        states = calls(case, network, weak) | odes(case, network, weak)
    maps = {name: grid(value, *network.config.grid) for name, value in states.items()}
    levels = torch.tensor(ladder(settings(case)[0][1] - 1, shift_of(case), end=END))
    with torch.no_grad():
        times = network.time_embedding(case.inputs["t"])
    return maps | losses(case, network) | {"ode_grid": levels, "time_embedding": times}


END = 0.001  # where the release's grid ends, before the shift


def network_of(case: Case, part: str) -> nn.Module:
    """`model` or `weak` of the case."""
    stated = case.meta["constructor"][part]
    state = {key.removeprefix(f"{part}."): value for key, value in case.state.items() if key.startswith(f"{part}.")}
    options = {"head_depth": stated["depth"][1], "condition_drop": stated["class_dropout_prob"]}
    return bare(case.imported("ditdh", state, **options)["network"])


def shift_of(case: Case) -> float:
    return float(re.search(r"shift.*?=\s*(\d+\.\d+)", case.call("training_losses"))[1])


def guidance_of(case: Case, call: str) -> Guidance:
    match = re.search(rf"{call}\(scale ([\d.]+), interval \[([\d.]+), ([\d.]+)\]\)", case.call(call))
    scale, low, high = map(float, match.groups())
    return Guidance(scale, interval=(low, high))


def calls(case: Case, network: nn.Module, weak: nn.Module) -> dict[str, Tensor]:
    z, t, condition = sequence(case.inputs["latents"]), case.inputs["t"], Condition(labels=case.inputs["labels"])
    guidance = {name: guidance_of(case, f"forward_with_{name}") for name in ("cfg", "autoguidance")}

    def each(chosen: Guidance, against: nn.Module | None) -> Tensor:
        """Image by image, for each has a noise level of its own."""
        rows = [slice(i, i + 1) for i in range(len(z))]
        return torch.cat([guided(network, condition[i], chosen, against)(z[i], t[i].item()) for i in rows])

    return {
        "velocity": network(z, t, condition),
        "velocity_null": network(z, t, network.null(condition)),
        "weak_velocity": weak(z, t, condition),
        "guided": each(guidance["cfg"], None).repeat(2, 1, 1),
        "autoguided": each(guidance["autoguidance"], weak),
    }


def settings(case: Case) -> list[tuple[str, int, str]]:
    """Method, points of the grid and kind of guidance of every run of sample_ode."""
    return ast.literal_eval(re.search(r"sample_ode (\[.*?\])", case.call("sample_ode"))[1])


def odes(case: Case, network: nn.Module, weak: nn.Module) -> dict[str, Tensor]:
    start, condition = sequence(case.inputs["sample_start"]), Condition(labels=case.inputs["labels"])
    states = {}
    for i, (method, points, kind) in enumerate(settings(case)):
        assert method == "euler"
        guidance = Guidance() if kind == "plain" else guidance_of(case, f"forward_with_{kind}")
        field = guided(network, condition, guidance, weak if kind == "autoguidance" else None)
        trajectory: list[Tensor] = []
        levels = ladder(points - 1, shift_of(case), end=END)
        euler(field, start, levels, lambda step, level, z, seen=trajectory: seen.append(z))
        states |= {f"ode_{i}_second": trajectory[0], f"ode_{i}_end": trajectory[-1]}
    return states


def losses(case: Case, network: nn.Module) -> dict[str, Tensor]:
    """By the draws that the case states; labels drop where their uniform number is below the class dropout."""
    stated, values, i = case.meta["constructor"]["model"], {}, 0
    while f"loss_{i}_noise_0" in case.inputs:
        noise, dropped = case.inputs[f"loss_{i}_noise_0"], case.inputs[f"loss_{i}_noise_2"]
        labels = torch.where(dropped < stated["class_dropout_prob"], stated["num_classes"], case.inputs["labels"])
        objective = objective_of(case, i)
        given = {"time": case.inputs[f"loss_{i}_noise_1"], "noise": sequence(noise)}
        randomness = objective.draw(code(case.inputs["latents"]), GivenDraws(given))
        condition, data = Condition(labels=labels), code(case.inputs["latents"])
        network.zero_grad()
        loss = FlowMatching().per_image(network, data, condition, randomness)["flow"]
        loss.mean().backward()
        with torch.no_grad():
            prediction = network(*FlowMatching().denoiser_input(data, condition, randomness))
        values |= {f"loss_{i}_times": randomness.time, f"loss_{i}": loss}
        values |= {f"loss_{i}_prediction": grid(prediction, *network.config.grid)}
        for name in (name for name in case.stored_names() if name.startswith(f"loss_{i}_grad.")):
            values[name] = gradient(network, name.partition("_grad.")[2]).view_as(case.stored[name])
        i += 1
    return values


def objective_of(case: Case, number: int) -> FlowMatching:
    """That of the loss of this number: its law of times, cut off as in the release, and the shift."""
    laws = re.search(r"time distributions (.*?), shift", case.call("training_losses"))[1].split(", ")
    name, *numbers = laws[number].split("_")
    if name == "uniform":
        return FlowMatching(shift=shift_of(case), largest_time=1 - END)
    mean, std = map(float, numbers)
    law = {"time": name.replace("-", "_"), "logit_mean": mean, "logit_std": std}
    return FlowMatching(shift=shift_of(case), largest_time=1 - END, **law)


def gradient(network: nn.Module, key: str) -> Tensor:
    """The gradient of the parameter that is called `key` in the release."""
    module, _, kind = key.rpartition(".")
    module = OURS.get(module, module.replace("adaLN_modulation.1", "modulation"))
    return network.get_parameter(f"{module}.{kind}").grad
