"""TiTok's masked generators: logits, the loss of training, and codes generated under each guidance schedule."""

import torch
from torch import Tensor

from golden_kinds import Case, bare
from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import ImageDraws
from pipeline.objectives.masked_token import MaskedToken
from pipeline.published.maskgit import convert
from pipeline.samplers.guidance import Guidance

MATCHES = "modeling.maskgit."
SCHEDULES = {"constant": "constant", "linear": "linear", "power_cosine": "cosine"}  # theirs and ours


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    constructor, inputs = case.meta["constructor"], case.inputs
    parts = convert(case.state, heads=constructor["model"]["generator"]["num_attention_heads"])
    network, losses = bare(parts["network"]), constructor["losses"]
    objective = MaskedToken(
        label_smoothing=losses["label_smoothing"], unmasked_weight=losses["loss_weight_unmasked_token"]
    )
    ids, mask, condition = inputs["tokens"], inputs["mask"], Condition(labels=inputs["labels"])
    assert torch.equal(inputs["masked_tokens"], ids.masked_fill(mask, network.config.vocab))
    logits = network(ids, mask, condition)[:, :, 0]
    right = (logits.argmax(dim=-1) == ids) & mask
    return {
        "logits": logits,
        "logits_dropped_label": network(ids, mask, network.null(condition))[:, :, 0],
        "mlm_loss": objective.loss(network, Code(ids=ids), condition, masked=mask)["masked_token"],
        "correct_tokens": (right.sum(dim=1) / mask.sum(dim=1)).mean(),
        **{f"generated_{name}": generated(case, network, objective, name) for name in SCHEDULES},
    }


def generated(case: Case, network, objective: MaskedToken, name: str) -> Tensor:
    """Their constant and linear guidance, cond + s (cond - null), is a scale of 1 + s; power-cosine is ours."""
    decay, labels = f"guidance_decay={name.replace('_', '-')}", case.inputs["gen_labels"]
    stated = case.number("guidance_scale", decay)
    power = case.number("guidance_scale_pow", decay) if name == "power_cosine" else 1.0
    guidance = Guidance(stated if name == "power_cosine" else 1 + stated, schedule=SCHEDULES[name], power=power)
    spec = LatentSpec(tuple(network.config.grid), dim=0, vocab=network.config.vocab)
    steps = int(case.number("num_sample_steps", decay))
    temperature = case.number("randomize_temperature", decay)
    settings = {"temperature": temperature, "noise": temperature, "anneal": True, "confidence": "logit"}
    softened = "softmax_temperature_annealing=True" in case.call(decay)
    draws = ImageDraws.from_seeds([0] * len(labels))
    return objective.sample(
        network, Condition(labels=labels), spec, draws, steps, guidance, **settings, soften=softened
    ).ids
