"""REG: a SiT that denoises a class token with the latents; its losses and its stochastic sampler."""

import re

import torch
from generating import sample
from torch import Tensor, nn

from golden_kinds import Case, bare, grid, sequence
from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import GivenDraws
from pipeline.nn.class_token import join_token, split_token
from pipeline.objectives.flow_matching import FlowMatching, FlowRandomness
from pipeline.samplers.guidance import Guidance

MATCHES = "models.sit.SiT"
REPOSITORY = "Martinser/REG"
NOT_OURS = {
    "projected_*": "the projectors served training alone and stay behind",
    "loss_projection": "the projectors served training alone and stay behind",
    "loss_total": "it holds the loss of the projectors",
    "loss_grad.*": "they are of the total, which holds the loss of the projectors",
}
PATHS = {"linear": "linear", "cosine": "trigonometric"}  # theirs and ours


class WholeState(FlowMatching):
    """Its samples keep the class token, which decoders do not need, in rows below the code."""

    def _code(self, state: Tensor) -> Code:
        return Code(z=state)


def not_ours(case: Case) -> dict[str, str]:
    """What the release alone has in this case."""
    unmatched = dict(NOT_OURS)
    if case.meta["constructor"]["path_type"] == "cosine":
        unmatched["loss_class"] = "a fault of the release: on the cosine path each token has all tokens as targets"
    for i, (_, scale, _, _, of_token) in enumerate(settings(case)):
        if scale != 1 and of_token != scale:
            unmatched[f"sampler_{i}_*"] = "guidance moves the class token as it moves the latents here"
    return unmatched


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    stated = case.meta["constructor"]
    options = {"heads": stated["num_heads"], "class_drop": stated["class_dropout_prob"]}
    network = bare(case.imported("reg", **options)["network"])
    width = network.config.class_token
    objective = WholeState(path=PATHS[stated["path_type"]], class_token=width)
    values = calls(case, network) | losses(case, network, objective) | samples(case, network, objective)
    values["time_embedding"] = network.time_embedding(case.inputs["t"])
    values["positions"] = torch.nn.functional.pad(network.positions, (0, 0, 1, 0))[None]
    return values


def calls(case: Case, network: nn.Module) -> dict[str, Tensor]:
    state = join_token(sequence(case.inputs["latents"]), case.inputs["cls"])
    condition, values = Condition(labels=case.inputs["labels"]), {}
    for name, asked in (("", condition), ("_null", network.null(condition))):
        velocity, token = split_token(network(state, case.inputs["t"], asked), network.config.class_token)
        values |= {f"velocity{name}": grid(velocity, *network.config.grid), f"class_velocity{name}": token}
    return values


def losses(case: Case, network: nn.Module, objective: FlowMatching) -> dict[str, Tensor]:
    """At the times that the case states; labels drop where their uniform number is below the class dropout."""
    inputs, stated = case.inputs, case.meta["constructor"]
    dropped = inputs["loss_noise_3"] < stated["class_dropout_prob"]
    condition = Condition(labels=torch.where(dropped, network.config.num_classes, inputs["labels"]))
    times, noise = case.stored["loss_times"], join_token(sequence(inputs["loss_noise_1"]), inputs["loss_noise_2"])
    code = Code(z=sequence(inputs["latents"]), class_token=inputs["cls"])
    terms = objective.per_image(network, code, condition, FlowRandomness(times, noise))
    return {"loss_denoising": terms["flow"], "loss_class": terms["class_token"], "loss_times": times}


def settings(case: Case) -> list[tuple[float, ...]]:
    """Steps, scale, the guided interval and the class token's own scale of every run of the sampler."""
    rows = re.findall(r"\((\d+), ([\d.]+), ([\d.]+), ([\d.]+), ([\d.]+)\)", case.call("euler_maruyama_sampler"))
    return [(int(steps), *map(float, numbers)) for steps, *numbers in rows]


def samples(case: Case, network: nn.Module, objective: FlowMatching) -> dict[str, Tensor]:
    """From noise level 1 to 0.04 in even steps with noise, and from there in one without."""
    inputs, values = case.inputs, {}
    spec = LatentSpec(tuple(network.config.grid), network.config.dim)
    for i, (steps, scale, low, high, _) in enumerate(settings(case)):
        noise = {"start": sequence(inputs["sample_start"]), "class_token_start": inputs["sample_cls_start"]}
        for k in range(steps - 1):
            rows = sequence(inputs[f"sampler_{i}_noise_{2 * k}"]), inputs[f"sampler_{i}_noise_{2 * k + 1}"]
            noise[f"step_{k}"] = join_token(*rows)
        state = sample(
            objective,
            network,
            Condition(labels=inputs["labels"]),
            spec,
            GivenDraws(noise),
            steps,
            Guidance(scale, interval=(low, high)),
            solver="sde",
            diffusion="linear",
            last_step="mean",
            last_step_size=0.04,
        )
        z, token = split_token(state.z, network.config.class_token)
        values |= {f"sampler_{i}_latents": grid(z, *network.config.grid), f"sampler_{i}_class": token}
    return values
