"""TiTok's masked generators: logits, the loss of training, and codes generated under each guidance schedule."""

import generating
import torch
from support.guidance_laws import guidance_law, stated
from torch import Tensor

from golden_kinds import Case, bare
from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import ImageDraws
from pipeline.objectives.masked_token import MaskedToken, MaskRandomness

MATCHES = "modeling.maskgit."


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    constructor, inputs = case.meta["constructor"], case.inputs
    parts = case.imported("maskgit", heads=constructor["model"]["generator"]["num_attention_heads"])
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
        "mlm_loss": objective.loss(network, Code(ids=ids), condition, MaskRandomness(mask))["masked_token"],
        "correct_tokens": (right.sum(dim=1) / mask.sum(dim=1)).mean(),
        **generated(case, network, objective),
    }


def generated(case: Case, network, objective: MaskedToken) -> dict[str, Tensor]:
    """What every call of generate gives, whatever its guidance."""
    spec = LatentSpec(tuple(network.config.grid), dim=0, vocab=network.config.vocab)
    labels, ids = case.inputs["gen_labels"], {}
    for call in (call for call in case.meta["calls"] if call["call"].startswith("generate(")):
        temperature = stated(call, "randomize_temperature")
        settings = {"temperature": temperature, "noise": temperature, "anneal": True, "confidence": "logit"}
        settings["soften"] = "softmax_temperature_annealing=True" in call["call"]
        draws, steps = ImageDraws.from_seeds([0] * len(labels)), int(stated(call, "num_sample_steps"))
        guidance = guidance_law(call, without_decay="constant")
        code = generating.sample(objective, network, Condition(labels=labels), spec, draws, steps, guidance, **settings)
        ids |= dict.fromkeys((name for name in call["outputs"] if name.startswith("generated")), code.ids)
    return ids
