"""DiT: the network, its diffusion's losses and its DDPM and DDIM trajectories."""

import re

import torch
from support.published_sampling import BothHalves, code, forward, guided_channels, guided_trajectory, imported, length
from torch import Tensor

from golden_kinds import Case, bare, grid, sequence
from pipeline.code import Condition
from pipeline.nn.embeddings import sinusoid
from pipeline.objectives.gaussian_diffusion import ChainRandomness, GaussianDiffusion
from pipeline.samplers.guidance import Guidance

MATCHES = "models.DiT"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    parts = imported(case, "dit")
    network, objective = bare(parts["network"]), parts["objective"]
    values = calls(case, network, objective) | chain(case, network, objective) | sampling(case, network, objective)
    return {
        name: value if value.ndim < 3 else grid(value, *network.config.grid) for name, value in values.items()
    } | embeddings(case, network)


def calls(case: Case, network, objective: GaussianDiffusion) -> dict[str, Tensor]:
    inputs, span = case.inputs, objective.config.num_train_timesteps
    guidance = Guidance(case.number("cfg_scale", "forward_with_cfg("), channels=guided_channels(case))
    both = BothHalves(network, guidance)
    return {
        "forward": forward(network, inputs["x"], inputs["t"] / span, inputs["y"]),
        "forward_with_cfg": forward(both, inputs["cfg_x"], inputs["cfg_t"] / span, inputs["cfg_y"]),
    }


def embeddings(case: Case, network) -> dict[str, Tensor]:
    inputs, classes = case.inputs, case.meta["constructor"]["num_classes"]
    widths = {
        name: case.meta["io"]["tensors"][f"output.{name}"]["shape"][1]
        for name in case.stored_names()
        if name.startswith("time_embedding")
    }
    tables = {name: sinusoid(inputs["embed_t"], width) for name, width in widths.items()}
    values = tables | {"time_vector": network.time_embedding(inputs["embed_t"])}
    if "drop_ids" in inputs:  # not where class dropout is 0: there is no row for the dropped label
        labels = torch.where(inputs["drop_ids"] == 1, classes, inputs["drop_labels"])
        values["label_vector_forced_drop"] = network.label_embedding(labels)
    return values


def chain(case: Case, network, objective: GaussianDiffusion) -> dict[str, Tensor]:
    steps, t, noise = objective.chain, case.inputs["loss_t"], sequence(case.inputs["noise"])
    data, condition = sequence(case.inputs["x_start"]), Condition(labels=case.inputs["y"])
    z = steps.noised(data, noise, t)
    output = network(z, t / objective.config.num_train_timesteps, condition)
    mean, log_variance, expected = objective.reverse(steps, output, z, t)
    terms = objective.per_image(network, code(case.inputs["x_start"]), condition, ChainRandomness(t, noise))
    return {
        "q_sample": z,
        "q_posterior_mean": steps.posterior_mean(data, z, t),
        "q_posterior_variance": steps.at(steps.posterior_variance, t, z).expand_as(z),
        "q_posterior_log_variance_clipped": steps.at(steps.posterior_log_variance, t, z).expand_as(z),
        "p_mean": mean,
        "p_variance": log_variance.exp(),
        "p_log_variance": log_variance,
        "p_pred_xstart": expected,
        "training_loss": sum(terms.values()),
        **{f"training_{name}": value for name, value in terms.items()},
    }


def sampling(case: Case, network, objective: GaussianDiffusion) -> dict[str, Tensor]:
    guidance = Guidance(case.number("cfg_scale", "DDPM"), channels=guided_channels(case))
    etas = [float(eta) for eta in re.findall(r"eta=(\d+\.?\d*)", case.call("DDIM eta"))]
    runs = {
        "ddpm": {"solver": "ddpm"},
        "ddpm_clipped": {"solver": "ddpm", "clip": True},
        "ddim": {"solver": "ddim", "eta": etas[0], "spacing": "stride"},
        "ddim_eta_half": {"solver": "ddim", "eta": etas[1]},
    }
    found = {}
    for name, settings in runs.items():
        steps = length(case, f"{name}_timesteps")
        found[f"{name}_timesteps"] = objective.chain.spaced(steps, settings.get("spacing", "even")).timesteps
        found[f"{name}_trajectory"] = guided_trajectory(case, objective, network, steps, guidance, **settings)
    return found
