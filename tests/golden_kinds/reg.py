"""REG: a SiT that denoises a class token with the latents; its losses and its stochastic sampler."""

import re

import torch
from generating import sample
from torch import Tensor, nn

from golden_kinds import Case, bare, grid, sequence
from golden_kinds.repa_e import gradient, of_parameter
from golden_kinds.robustok import BatchDraws
from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import GivenDraws
from pipeline.frozen.feature_maps import StoredFeatures
from pipeline.latents.code_source import CodeBatch
from pipeline.losses.feature_cosine import FeatureCosine
from pipeline.nn.class_token import join_token, split_token
from pipeline.nn.feature_head import HeadShape
from pipeline.objectives.flow_matching import FlowMatching, FlowRandomness
from pipeline.samplers.guidance import Guidance
from pipeline.teachers.base import Tap
from pipeline.training.generation import Generation

MATCHES = "models.sit.SiT"
REPOSITORY = "Martinser/REG"
FAULT = "a fault of the release: on the cosine path each class token has all of them as targets"
TERM = "feature_cosine"
PATHS = {"linear": "linear", "cosine": "trigonometric"}  # theirs and ours


class WholeState(FlowMatching):
    """Its samples keep the class token, which decoders do not need, in rows below the code."""

    def _code(self, state: Tensor) -> Code:
        return Code(z=state)


def not_ours(case: Case) -> dict[str, str]:
    """What the release alone has in this case."""
    if case.meta["constructor"]["path_type"] == "linear":
        return {}
    return dict.fromkeys(("loss_class", "loss_total", "loss_grad.*"), FAULT)


def outputs(case: Case) -> dict[str, Tensor]:
    stated = case.meta["constructor"]
    options = {"heads": stated["num_heads"], "condition_drop": stated["class_dropout_prob"]}
    network = bare(case.imported("reg", **options)["network"])
    width = network.config.class_token
    objective = WholeState(path=PATHS[stated["path_type"]], class_token=width)
    with torch.no_grad():
        values = calls(case, network) | losses(case, network, objective) | samples(case, network, objective)
    values |= training(case, network, objective)
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


def alignment_of(case: Case) -> FeatureCosine:
    stated = case.meta["constructor"]
    teacher = StoredFeatures("given", case.inputs["teacher"].shape[-1])
    places = [stated["input_size"] // stated["patch_size"]] * 2
    shape = HeadShape(layers=3, hidden=stated["projector_dim"])
    block, tap = stated["encoder_depth"], Tap(teacher, class_token=True)
    loss = FeatureCosine(tap, stated["hidden_size"], places, block=block, head=shape, class_token=True)
    prefix = "projectors.0."
    loss.head.layers.load_state_dict({k.removeprefix(prefix): v for k, v in case.state.items() if k.startswith(prefix)})
    return bare(loss)


def training(case: Case, network: nn.Module, objective: FlowMatching) -> dict[str, Tensor]:
    """The generator's turn on the batch, and what its head makes of the states of the first call."""
    inputs = case.inputs
    weights = {"flow": 1.0, "class_token": 0.03, TERM: 0.5}  # as released
    task = Generation(network, objective, weights, {TERM: alignment_of(case)})
    given = {"time": case.stored["loss_times"].flatten(), "noise": sequence(inputs["loss_noise_1"])}
    given |= {"class_token_noise": inputs["loss_noise_2"], "condition_drop": inputs["loss_noise_3"]}
    code = Code(z=sequence(inputs["latents"]), class_token=inputs["cls"])
    batch = CodeBatch(code, condition=Condition(labels=inputs["labels"]), features={TERM: inputs["teacher"]})
    _, terms = next(task.turns(batch, BatchDraws(given, len(inputs["labels"])), 0))
    total = sum(terms.values())
    state = join_token(code.z, inputs["cls"])
    with torch.no_grad():
        _, heads = task.players["network"](state, inputs["t"], Condition(labels=inputs["labels"]))
    values = {"projected_0": heads[TERM], "loss_projection": terms[TERM] / weights[TERM] - 1}
    values["loss_total"] = total - weights[TERM]
    for name in (name for name in case.stored if name.startswith("loss_grad.")):
        values[name] = of_weight(case, task, total, name.removeprefix("loss_grad."))
    return values


def of_weight(case: Case, task: Generation, total: Tensor, name: str) -> Tensor:
    """The gradient of a parameter; of the label table the rows of the labels in order, and then the null row."""
    stored = case.stored[f"loss_grad.{name}"]
    if not name.startswith("y_embedder."):
        return of_parameter(task, total, name, stored)
    table = task.network.label_embedding.weight
    rows = torch.cat([case.inputs["labels"], torch.tensor([len(table) - 1])])
    return gradient(total, table)[rows]


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
    for i, (steps, scale, low, high, of_token) in enumerate(settings(case)):
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
            Guidance(scale, interval=(low, high), class_token=of_token or 1.0),  # 0 there: not guided
            solver="sde",
            diffusion="linear",
            last_step="mean",
            last_step_size=0.04,
        )
        z, token = split_token(state.z, network.config.class_token)
        values |= {f"sampler_{i}_latents": grid(z, *network.config.grid), f"sampler_{i}_class": token}
    return values
