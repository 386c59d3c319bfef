"""LARP's generator: logits, loss, and greedy generation with and without guidance."""

import torch
from support.autoregressive_sampling import greedy
from support.guidance_laws import stepped_guidance
from torch import Tensor

from golden_kinds import Case, bare
from pipeline.code import Code, Condition
from pipeline.objectives.next_token import NextToken

MATCHES = "models.larp_ar.LARP_AR"
REPOSITORY = "hywang66/LARP"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    network = bare(case.imported("larp_ar", heads=case.meta["constructor"]["n_head"])["network"])
    labels = case.inputs["labels"]
    labels = torch.where(labels < 0, network.config.num_classes, labels)  # no class there
    code, condition = Code(ids=case.inputs["tokens"]), Condition(labels=labels)
    found = {
        "logits": network(code.ids, condition)[:, :, 0],
        "loss": NextToken().loss(network, code, condition)["next_token"],
    }
    for call in (call for call in case.meta["calls"] if call["call"].startswith("sample(")):
        guidance = stepped_guidance(call, network.tokens)
        ids, logits = greedy(network, NextToken(), Condition(labels=case.inputs["gen_labels"]), guidance)
        name = call["outputs"][0].removeprefix("generated_")
        found |= {f"generated_{name}": ids.int(), f"gen_logits_{name}": logits}
    return found
