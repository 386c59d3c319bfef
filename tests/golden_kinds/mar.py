"""MAR: the loss of training with its gradients, and codes sampled under constant and linear guidance."""

import json
import re

import generating
import torch
from support.token_noise import head_draws, ranks_of, token_noise
from torch import Tensor

from golden_kinds import Case, grid, sequence
from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import GivenDraws
from pipeline.nn.embeddings import unpatchify
from pipeline.objectives.masked_latent import MaskedLatent, MaskedLatentRandomness
from pipeline.samplers.guidance import Guidance

MATCHES = "models.mar.MAR"
GRADIENTS = {  # of ours by the stored name
    "mask_token": "mask_token",
    "z_proj": "token_embedding.weight",
    "diffusion_positions": "state_positions",
    "head_input_proj": "head.embedding.weight",
}


def outputs(case: Case) -> dict[str, Tensor]:
    constructor = case.meta["constructor"]
    options = {"heads": constructor["encoder_num_heads"], "decoder_heads": constructor["decoder_num_heads"]}
    parts = case.imported("mar", **options, patch_size=constructor["patch_size"], dropout=constructor["attn_dropout"])
    network = parts["network"].eval().float()
    objective = MaskedLatent(least=constructor["mask_ratio_min"], copies=constructor["diffusion_batch_mul"])
    return training(case, network, objective) | sampling(case, network, objective)


def training(case: Case, network, objective: MaskedLatent) -> dict[str, Tensor]:
    inputs, config = case.inputs, network.config
    order, places = inputs["orders"], inputs["orders"].shape[1]
    rate = inputs["mask_rate"].item()
    count = -int(-places * rate // 1)
    dropped = inputs["drop_u"] < case.meta["constructor"]["label_drop_prob"]
    condition = Condition(labels=torch.where(dropped, config.num_classes, inputs["labels"]))
    given = head_draws(order, count, inputs["loss_t"], inputs["loss_noise"])
    given["head.noise"] = channels_last(given["head.noise"], config.patch_size)
    draws = GivenDraws({"order": ranks_of(order), **given})
    terms = objective.loss(network, Code(z=sequence(inputs["imgs"])), condition, MaskedLatentRandomness(rate, draws))
    loss = terms["mse"] + terms["vb"]
    loss.backward()
    gradients = {name: network.get_parameter(ours).grad for name, ours in GRADIENTS.items()}
    for name in ("z_proj", "head_input_proj"):
        gradients[name] = channels_first(gradients[name], config.patch_size)
    table = network.label_embedding.weight.grad
    gradients |= {"class_emb": table[:-1], "fake_latent": table[-1:]}
    gradients["mask_token"] = gradients["mask_token"][None, None]
    gradients["diffusion_positions"] = gradients["diffusion_positions"][None]
    mask = torch.zeros_like(order, dtype=torch.float32).scatter(1, order[:, :count], 1)
    return {"loss": loss, "mask": mask} | {f"grad_{name}": value for name, value in gradients.items()}


def channels_last(values: Tensor, patch: int) -> Tensor:
    """Channels of a patch on the last axis, [C, rows, columns] as published, in our order [rows, columns, C]."""
    return values.unflatten(-1, (-1, patch**2)).transpose(-1, -2).flatten(-2)


def channels_first(values: Tensor, patch: int) -> Tensor:
    return values.unflatten(-1, (patch**2, -1)).transpose(-1, -2).flatten(-2)


@torch.no_grad()
def sampling(case: Case, network, objective: MaskedLatent) -> dict[str, Tensor]:
    steps = sum(name.startswith("sample_plain_init_") for name in case.inputs)
    head_steps = case.inputs["sample_plain_steps_0"].shape[0]
    strided = case.meta["constructor"]["num_sampling_steps"].startswith("ddim")
    spacing = {"spacing": "stride"} if strided else {}
    found = {"kept_timesteps": objective.head.chain.spaced(head_steps, **spacing).timesteps}
    stated = re.findall(r"(\w+): (\{[^}]*\})", case.call("sample_tokens"))
    calls = {name: json.loads(arguments) for name, arguments in stated}
    for name, arguments in calls.items():
        guidance = Guidance(arguments["cfg"], schedule=arguments.get("cfg_schedule", "linear"))
        given = noise_of_codes(case, network, f"sample_{name}", steps)
        draws = GivenDraws({"order": ranks_of(case.inputs["sample_orders"]), **given})
        spec = LatentSpec(tuple(network.config.grid), network.config.dim)
        condition = Condition(labels=case.inputs["sample_labels"])
        settings = {"head_steps": head_steps, "temperature": arguments.get("temperature", 1.0), **spacing}
        code = generating.sample(objective, network, condition, spec, draws, steps, guidance, **settings)
        found[f"sampled_{name}"] = grid(code.z, *network.config.grid)
    return found


def noise_of_codes(case: Case, network, prefix: str, iterations: int) -> dict[str, Tensor]:
    """The given noise by name, [B, N, C], each token's in its place."""
    config, inputs = network.config, case.inputs
    starts = [inputs[f"{prefix}_init_{i}"] for i in range(iterations)]
    steps = [list(inputs[f"{prefix}_steps_{i}"]) for i in range(iterations)]
    noise = token_noise(inputs["sample_orders"], starts, steps)
    last = lambda value: channels_last(value, config.patch_size)  # noqa: E731
    return {name: unpatchify(last(value), config.grid, config.patch_size) for name, value in noise.items()}
