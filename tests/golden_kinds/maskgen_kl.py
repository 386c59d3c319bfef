"""MaskGen-KL: the loss of training with the states of tokens, and codes sampled with guidance and without."""

import ast
import math
import re

import generating
import torch
from support.token_noise import head_draws, ranks_of, token_noise
from torch import Tensor

from golden_kinds import Case, bare
from golden_kinds.maskgen_vq import captions
from pipeline.code import Code, LatentSpec
from pipeline.draws import GivenDraws
from pipeline.objectives.masked_latent import MaskedLatent
from pipeline.samplers.guidance import Guidance

MATCHES = "modeling.maskgen.MaskGen_KL"
DEFAULTS = {"num_iter": 32, "cfg": 3.0, "cfg_schedule": "linear", "temperature": 1.0}  # of the released sample_tokens


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    model, inputs = case.meta["constructor"]["model"], case.inputs
    options = {"heads": model["maskgen"]["decoder_num_heads"], "text_tokens": inputs["text"].shape[1]}
    network = bare(case.imported("maskgen_kl", **options)["network"])
    network.set_empty_text(captions(case, "null_text"))
    objective = MaskedLatent(schedule="arccos", copies=model["maskgen"].get("diffusion_batch_mul", 4))
    cosines, sines = network.vector.encode_score(inputs["aesthetic_score"]).chunk(2, dim=-1)
    chain, released = objective.head.chain.spaced(*spacing_of(case)), objective.head.chain.spaced(100)
    return {
        "score_encoding": torch.stack([sines, cosines], dim=-1).flatten(1),
        "timestep_map": chain.timesteps,
        "alphas_cumprod": chain.signal,
        "released_timestep_map": released.timesteps,
        "released_alphas_cumprod": released.signal,
        **training(case, network, objective),
        **sampling(case, network, objective),
    }


def scale_of(case: Case) -> float:
    return case.meta["constructor"]["model"]["vq_model"]["scale_factor"]


def spacing_of(case: Case) -> tuple[int, str]:
    """Steps of the head, and which of the timesteps they are."""
    stated = case.meta["constructor"]["losses"].get("num_sampling_steps", "100")
    return int(stated.removeprefix("ddim")), "stride" if stated.startswith("ddim") else "even"


def training(case: Case, network, objective: MaskedLatent) -> dict[str, Tensor]:
    inputs, scale = case.inputs, scale_of(case)
    batch, tokens = inputs["orders"].shape
    flat = inputs["moments"].reshape(batch, -1, 1, tokens)  # [B, 2 D, 1, N]
    mean, log_variance = flat.chunk(2, dim=1)
    std = torch.exp(0.5 * log_variance.clamp(-30, 20))
    z = (scale * (mean + std * inputs["draw_0"]))[:, :, 0].transpose(1, 2)  # [B, N, D]
    count = math.ceil(tokens * torch.arccos(inputs["mask_time_0"]).item() / (math.pi / 2))
    order, condition = inputs["orders"], captions(case, "text")
    given = head_draws(order, count, inputs["draw_1"], inputs["draw_2"])
    given |= {"order": ranks_of(order), "mask_rate": inputs["mask_time_0"]}
    code, draws = Code(z=z), GivenDraws(given)
    terms = objective.loss(network, code, condition, objective.draw(code, draws))
    return {
        "training_loss": terms["mse"] + terms["vb"],
        "training_z": network.states(z, order[:, count:], condition),
        "training_mask": torch.zeros_like(order, dtype=torch.float32).scatter(1, order[:, :count], 1),
        "training_latents": z,
    }


def sampling(case: Case, network, objective: MaskedLatent) -> dict[str, Tensor]:
    (head_steps, spacing), inputs, found = spacing_of(case), case.inputs, {}
    for name, written in re.findall(r"(\w+): (\{[^}]*\})", case.call("sample_tokens(")):
        call = DEFAULTS | ast.literal_eval(written)
        drawn = [inputs[f"noise_{name}_{i}"] for i in range(call["num_iter"] * (head_steps + 1))]
        starts, drawn = drawn[:: head_steps + 1], iter(drawn)
        steps = [[next(drawn) for _ in range(head_steps + 1)][1:] for _ in starts]
        noise = token_noise(inputs["orders"], starts, steps)
        draws = GivenDraws({"order": ranks_of(inputs["orders"]), **noise})
        guidance = Guidance(call["cfg"], schedule=call["cfg_schedule"])
        settings = {"head_steps": head_steps, "spacing": spacing, "temperature": call["temperature"]}
        spec, condition = LatentSpec(tuple(network.config.grid), network.config.dim), captions(case, "text")
        code = generating.sample(objective, network, condition, spec, draws, call["num_iter"], guidance, **settings)
        found[f"generated_{name}"] = code.z.transpose(1, 2)[:, :, None] / scale_of(case)
    return found
