"""REPA-E's three turns on one batch, through the import of its parts and the task of joint training.

A term of alignment is one less there: the mean of -cos, which has the same gradient.
"""

import copy

import torch
from torch import Tensor, nn

from golden_kinds import Case, bare, grid, sequence
from golden_kinds.rectok import Given
from golden_kinds.robustok import BatchDraws
from golden_kinds.robustok_loss import StandIn
from pipeline.code import Code, Condition
from pipeline.critics.patch import Patch
from pipeline.images.reading import ImageBatch
from pipeline.losses.feature_cosine import FeatureCosine
from pipeline.losses.pixel import Pixel
from pipeline.nn.feature_head import HeadShape
from pipeline.nn.running_norm import RunningNorm
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.published import autoencoder_trunk
from pipeline.published.checkpoint import rename
from pipeline.published.transformer_trunk import NAMES
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.samplers.guidance import drop
from pipeline.teachers.base import Tap
from pipeline.training.generation import Generation
from pipeline.training.joint import JointTraining

MATCHES = "models.sit.SiT, models.autoencoder.AutoencoderKL"
REPOSITORY = "End2End-Diffusion/REPA-E"
TERM = "feature_cosine"


def outputs(case: Case) -> dict[str, Tensor]:
    task = task_of(case)
    batch, draws = ImageBatch(images_of(case), Condition(labels=case.inputs["labels"])), draws_of(case)
    values = of_tokenizer(case, task, batch, draws)
    turns = task.turns(batch, draws, 0)
    _, terms = next(turns)
    values |= tokenizer_terms(case, task, terms)
    values["vae.running_mean_after"] = task.norm.mean.clone()
    values |= of_critic(case, task, *next(turns))
    norm = copy.deepcopy(task.norm)  # before the turn that moves it
    return values | of_generator(case, task, norm, next(turns)[1])


def images_of(case: Case) -> Tensor:
    return case.inputs["raw_image"].float() / 127.5 - 1


def draws_of(case: Case) -> BatchDraws:
    given = {
        "posterior": sequence(case.inputs["posterior_noise_0"]),
        "time": case.inputs["align_noise_0"].flatten(),
        "noise": sequence(case.inputs["align_noise_1"]),
        "condition_drop": case.inputs["sit_noise_0"],
    }
    return BatchDraws(given, len(case.inputs["labels"]))


def part(case: Case, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in case.state.items() if key.startswith(prefix)}


def task_of(case: Case) -> JointTraining:
    stated, given = case.meta["constructor"], case.meta["constructor"]["loss"]["losses"]
    parts = {name: part(case, f"{name}.") for name in ("model", "vae")}
    model = stated["model"]
    imported = case.imported("repa_e", parts, heads=model["num_heads"], condition_drop=model["class_dropout_prob"])
    tokenizer, network, objective = bare(imported["tokenizer"]), bare(imported["network"]), imported["objective"]
    weights = {
        "pixel": given["reconstruction_weight"] / case.state["loss.logvar"].exp().item(),
        "perceptual": given["perceptual_weight"],
        "kl": given["kl_weight"] * case.inputs["posterior_noise_0"][0].numel(),  # a sum there, a mean here
        "adversarial": given["discriminator_weight"] * given["discriminator_factor"],
    }
    nodes = {"pixel": {"kind": "pixel"}, "perceptual": {"kind": "perceptual"}}
    adversary = Adversary({"kind": "patch"}, start=given["discriminator_start"], adaptive=False)
    phase = Phase(Loop(1, {}), weights, nodes, adversary=adversary)
    losses = {TERM: alignment_of(case, list(network.config.grid))}
    generation = Generation(network, objective, {"flow": 1.0, TERM: stated["weights"]["sit_align"]}, losses)
    norm = RunningNorm(tokenizer.mean, tokenizer.std, momentum=model["bn_momentum"])
    pixel = {"pixel": Pixel(given["reconstruction_loss"]), "perceptual": StandIn()}
    weight = {TERM: stated["weights"]["vae_align"]}
    return JointTraining(tokenizer, phase, pixel, critic_of(case), generation, norm, weight)


def alignment_of(case: Case, sides: list[int]) -> FeatureCosine:
    model, projector = case.meta["constructor"]["model"], part(case, "model.projectors.0.")
    shape = HeadShape(layers=3, hidden=model["projector_dim"])
    tap, places = Tap(Given(case.inputs["teacher"])), [side // model["patch_size"] for side in sides]
    loss = FeatureCosine(tap, model["hidden_size"], places, block=model["encoder_depth"], head=shape)
    loss.head.layers.load_state_dict(projector)
    return loss


def critic_of(case: Case) -> Patch:
    state = part(case, "loss.discriminator.")
    layers = sum(key.endswith("running_mean") for key in state)
    critic = Patch(len(state["main.0.weight"]), layers, norm="batch")
    critic.load_state_dict(state)
    return bare(critic)


def of_tokenizer(case: Case, task: JointTraining, batch: ImageBatch, draws: BatchDraws) -> dict[str, Tensor]:
    """The pass of the tokenizer, and the gradients of its terms."""
    sides = case.inputs["posterior_noise_0"].shape[2:]
    network, loss = task.players["network"], task.generation.losses[TERM]
    with torch.no_grad():
        mean, logvar = task.players["tokenizer"].neck.split(task.players["tokenizer"].features(batch.images))
    rebuilt = task.rebuild(batch, draws, 0)
    features = {TERM: loss.tap(batch.images, loss.grid)}
    aligned = task.alignment_terms(batch.condition, features, draws)[TERM]
    ramp, images = task.phase.adversary.weight_factor(0), batch.images
    terms = task.tokenizer_terms(images, images, rebuilt, ramp, draws)
    network.eval()
    code = Code(z=task.norm(rebuilt.code.z))
    inputs = task.generation.objective.denoiser_input(
        code, batch.condition, task.generation.objective.draw(code, draws)
    )
    projected = network(*inputs, predict=False)[1][TERM]
    network.train()
    weight = task.alignment[TERM]
    values = {
        "mean": grid(mean, *sides),
        "logvar": grid(logvar, *sides),
        "latent": grid(rebuilt.code.z, *sides),
        "reconstruction": rebuilt.images,
        "times": inputs.time,
        "vae.normalized_latent": grid(code.z, *sides),
        "vae.projected": projected,
        "vae.grad_alignment_latent": grid(gradient(aligned, rebuilt.code.z) / weight, *sides),
    }
    parts = {"alignment": aligned / weight, "losses": sum(terms.values())}
    parts["total"] = parts["losses"] + aligned
    names = autoencoder_trunk.names(len(task.players["tokenizer"].config.multipliers))
    for name in case.stored:
        if name.startswith("vae.grad_") and "." in name.removeprefix("vae.grad_"):
            term, _, parameter = name.removeprefix("vae.grad_").partition(".")
            (ours,) = rename({parameter: case.stored[name]}, names)
            found = gradient(parts[term], task.players["tokenizer"].get_parameter(ours))
            values[name] = found.reshape_as(case.stored[name])
    return values


def tokenizer_terms(case: Case, task: JointTraining, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    weights, weight = task.phase.weights, task.alignment[TERM]
    return {
        "vae.reconstruction_loss": terms["pixel"],
        "vae.perceptual_loss": terms["perceptual"],
        "vae.kl_loss": terms["kl"],
        "vae.weighted_gan_loss": terms["adversarial"],
        "vae.gan_loss": terms["adversarial"] / weights["adversarial"],
        "vae.alignment": terms[TERM] / weight - 1,
        "vae.total": sum(terms.values()) - weight,
    }


def of_critic(case: Case, task: JointTraining, player: str, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    assert player == "critic"
    loss, critic = sum(terms.values()), task.game.critic
    values = {f"discriminator.logits_{side}": task.metrics[f"logits_{side}"] for side in ("real", "fake")}
    values["discriminator.loss"] = loss
    for name in (name for name in case.stored if name.startswith("discriminator.grad.")):
        parameter = critic.get_parameter(name.removeprefix("discriminator.grad.discriminator."))
        values[name] = gradient(loss, parameter)
    return values


def of_generator(case: Case, task: JointTraining, norm: RunningNorm, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    generation, draws, weight = task.generation, draws_of(case), task.generation.weights[TERM]
    network, objective = generation.network, generation.objective
    condition = drop(network, Condition(labels=case.inputs["labels"]), draws.uniform("condition_drop"))
    code = Code(z=norm.train()(task.z.detach()))
    randomness = objective.draw(code, draws)
    total = sum(terms.values())
    values = {
        "sit.denoising": per_image(objective, network, code, condition, randomness),
        "sit.output": grid(network(*objective.denoiser_input(code, condition, randomness)), *network.config.grid),
        "sit.alignment": terms[TERM] / weight - 1,
        "sit.total": total - weight,
        "sit.running_mean_after": task.norm.mean,
        "sit.running_var_after": task.norm.variance,
        "sit.latents_scale": task.norm.variance.rsqrt(),
        "sit.latents_bias": task.norm.mean,
    }
    for name in (name for name in case.stored if name.startswith("sit.grad.")):
        theirs = name.removeprefix("sit.grad.")
        values[name] = of_parameter(generation, total, theirs, case.stored[name])
    return values


def per_image(objective: FlowMatching, network: nn.Module, *arguments: object) -> Tensor:
    return objective.per_image(network, *arguments)["flow"]


def of_parameter(generation: Generation, total: Tensor, name: str, value: Tensor) -> Tensor:
    """The gradient of a parameter under its published name and shape; patches are channel last here."""
    if name.startswith("projectors.0."):
        layers = generation.losses[TERM].head.layers
        return gradient(total, layers.get_parameter(name.removeprefix("projectors.0.")))
    (ours,) = rename({name: value}, NAMES)
    found = gradient(total, generation.network.get_parameter(ours))
    if ours == "patch_embedding.weight":
        found = found.unflatten(1, (*value.shape[2:], -1)).movedim(-1, 1)
    return found


def gradient(value: Tensor, at: Tensor) -> Tensor:
    found = torch.autograd.grad(value, at, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(at) if found is None else found
