"""MaskGen-VQ: logits, the loss of training with its masks, and ids generated under three laws of guidance."""

import ast
import re

import generating
import torch
from torch import Tensor

from golden_kinds import Case, bare
from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import GivenDraws
from pipeline.objectives.masked_token import MaskedToken
from pipeline.samplers.guidance import Guidance

MATCHES = "modeling.maskgen.MaskGen_VQ"
DEFAULTS = {  # of the released generate
    "guidance_scale": 12.0,
    "randomize_temperature": 1.5,
    "softmax_temperature_annealing": True,
    "num_sample_steps": 16,
    "guidance_decay": "cosine",
    "guidance_decay_scale_pow": 1.0,
    "prob_sorting": True,
}


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    model, losses, inputs = case.meta["constructor"]["model"], case.meta["constructor"]["losses"], case.inputs
    options = {"heads": model["maskgen"]["decoder_num_heads"], "vocab": model["vq_model"]["codebook_size"]}
    options |= {"text_tokens": inputs["text"].shape[1], "condition_drop": model["maskgen"]["text_drop_prob"]}
    options["score"] = model["maskgen"].get("sample_aesthetic_score")
    network = bare(case.imported("maskgen_vq", **options)["network"])
    network.set_empty_text(captions(case, "null_text"))
    objective = MaskedToken(
        label_smoothing=losses["label_smoothing"], unmasked_weight=losses["loss_weight_unmasked_token"]
    )
    condition, ids, vocab = captions(case, "text"), inputs["tokens"], network.config.vocab
    masked = inputs["masked_tokens"] == vocab
    ranks = inputs["mask_rand_0"].argsort(dim=-1) / ids.shape[1]  # what is sorted once there has these ranks
    draws = GivenDraws({"mask_places": ranks, "mask_rate": inputs["mask_times_0"]})
    randomness = objective.draw(Code(ids=ids), draws)
    logits = network(ids, randomness.masked, condition)[:, :, 0]
    right = (logits.argmax(dim=-1) == ids) & randomness.masked
    return {
        "logits": network(inputs["masked_tokens"].masked_fill(masked, 0), masked, condition)[:, :, 0],
        "pooled_with_score": with_score(network, condition)[:, None],
        "training_logits": logits,
        "training_masks": randomness.masked,
        "training_loss": objective.loss(network, Code(ids=ids), condition, randomness)["masked_token"],
        "correct_tokens": (right.sum(dim=1) / randomness.masked.sum(dim=1)).mean(),
        **generated(case, network, objective),
    }


def captions(case: Case, name: str) -> Condition:
    """The captions of this name, of which all places are read, and the scores beside them."""
    text, pooled = case.inputs[name], case.inputs[f"{name}_pooled"][:, 0]
    score = case.inputs["aesthetic_score"] if name == "text" and "aesthetic_score" in case.inputs else None
    return Condition(None, text, torch.ones(text.shape[:2], dtype=torch.bool), pooled, score)


def with_score(network, condition: Condition) -> Tensor:
    """The pooled vector with the encoded score as published, sines before cosines."""
    cosines, sines = network.vector.encode_score(condition.score).chunk(2, dim=-1)
    return torch.cat([condition.pooled, sines, cosines], dim=-1)


def generated(case: Case, network, objective: MaskedToken) -> dict[str, Tensor]:
    """What every call of generate gives; it knows the score of the configuration alone."""
    calls, found = re.findall(r"(\w+): (\{[^}]*\})", case.call("generate with given text")), {}
    spec = LatentSpec(tuple(network.config.grid), dim=0, vocab=network.config.vocab)
    for name, written in calls:
        call = DEFAULTS | ast.literal_eval(written)
        count = case.stored[f"generated_{name}"].shape[0]
        condition = captions(case, "text")[:count]
        condition.score = None
        draws = GivenDraws(noise(case, name, call))
        settings = {
            "temperature": call["randomize_temperature"],
            "noise": call["randomize_temperature"] if call["prob_sorting"] else 0.0,
            "anneal": True,
            "soften": call["softmax_temperature_annealing"],
            "confidence": "logit",
            "draw": "gumbel",
            "guided_after": True,
        }
        steps = call["num_sample_steps"]
        code = generating.sample(objective, network, condition, spec, draws, steps, guidance_of(call), **settings)
        found[f"generated_{name}"] = code.ids
    return found


def guidance_of(call: dict) -> Guidance:
    """cond + s (cond - null), where s goes from 1 to `guidance_scale`, is a scale of 1 + s here."""
    scale, law = 1 + call["guidance_scale"], call["guidance_decay"]
    if law == "none":
        return Guidance(scale)
    schedule = {"flippedcosine": "flipped_cosine"}.get(law, law)
    power = 1.0 if law == "linear" else call["guidance_decay_scale_pow"]
    return Guidance(scale, schedule=schedule, power=power, start=2.0)


def noise(case: Case, name: str, call: dict) -> dict[str, Tensor]:
    """The uniform numbers of every step: for the choice of ids, then where tokens are sorted for their confidence."""
    drawn = iter([case.inputs[f"gumbel_uniform_{name}_{i}"] for i in range(count_draws(call))])
    given, order = {}, []
    for step in range(call["num_sample_steps"]):
        ids = next(drawn)  # [B, N, vocab]
        given[f"gumbel_{step}"] = ids[:, :, None]
        order.append(next(drawn) if call["prob_sorting"] else torch.full(ids.shape[:2], 0.5))
    return given | {"order": torch.stack(order, dim=1)}


def count_draws(call: dict) -> int:
    return call["num_sample_steps"] * (2 if call["prob_sorting"] else 1)
