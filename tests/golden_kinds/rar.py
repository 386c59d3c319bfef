"""RAR: logits and losses in raster and in given orders, greedy generation under power-cosine guidance."""

import torch
from support.autoregressive_sampling import greedy
from support.guidance_laws import guidance_law
from torch import Tensor, nn

from golden_kinds import Case, bare
from pipeline.code import Code, Condition
from pipeline.objectives.base import Objective
from pipeline.objectives.random_order import OrderRandomness
from pipeline.published.rar import condition_ids

MATCHES = "modeling.rar.RAR"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    parts = case.imported("rar")
    network, inputs = bare(parts["network"]), case.inputs
    vocab, condition = network.config.vocab, Condition(labels=inputs["labels"])
    raster = torch.arange(network.tokens).expand_as(inputs["tokens"])
    found = {
        "condition_ids": condition_ids(inputs["labels"], vocab),
        "none_condition_ids": condition_ids(network.null(condition).labels, vocab),
    }
    for name, order in (("raster", raster), ("permuted", inputs["orders"])):
        terms = parts["objective"].loss(network, Code(ids=inputs["tokens"]), condition, OrderRandomness(order))
        ids = inputs["tokens"].gather(1, order)
        states = network.states(ids[..., None], condition, order)  # theirs go on after the last token
        logits = network.head(states, states[..., :0].long())[:, :, 0]
        found |= {f"loss_{name}": terms["random_order"], f"logits_{name}": logits, f"labels_{name}": ids}
        found[f"correct_{name}"] = (logits[:, :-1].argmax(-1) == ids).float().mean()
    return found | generated(case, parts["objective"], network)


def generated(case: Case, objective: Objective, network: nn.Module) -> dict[str, Tensor]:
    """`generated_NAME` and `guided_logits_NAME` of every call of generate."""
    found = {}
    for call in (call for call in case.meta["calls"] if call["call"].startswith("generate(")):
        guidance = guidance_law(call, without_decay="power-cosine")
        ids, logits = greedy(network, objective, Condition(labels=case.inputs["gen_labels"]), guidance)
        name = call["outputs"][0].removeprefix("generated_")
        found |= {f"generated_{name}": ids, f"guided_logits_{name}": logits}
    return found
