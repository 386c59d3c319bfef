"""LlamaGen's generator: logits, losses and greedy generation with and without guidance."""

import torch
from support.autoregressive_sampling import greedy
from support.guidance_laws import stepped_guidance
from torch import Tensor

from golden_kinds import Case, bare
from pipeline.code import Code, Condition
from pipeline.objectives.next_token import NextToken

MATCHES = "autoregressive.models.gpt.Transformer"
REPOSITORY = "FoundationVision/LlamaGen"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    stated = case.meta["constructor"]
    options = {
        "heads": stated["n_head"],
        "tokens": stated["block_size"],
        "condition_drop": stated["class_dropout_prob"],
    }
    network = bare(case.imported("llamagen_gpt", **options)["network"])
    return training(case, network) | generated(case, network)


def training(case: Case, network: torch.nn.Module) -> dict[str, Tensor]:
    inputs = case.inputs
    code, condition = Code(ids=inputs["tokens"]), Condition(labels=inputs["labels"])
    rows = inputs["valid"].bool()
    return {
        "rotary_table": torch.stack([network.cosines[:, ::2], network.sines[:, ::2]], dim=-1),
        "train_logits": network(code.ids, condition)[:, :, 0],
        "train_loss": NextToken().loss(network, code, condition)["next_token"],
        "train_loss_valid": NextToken().loss(network, code[rows], condition[rows])["next_token"],
    }


def generated(case: Case, network: torch.nn.Module) -> dict[str, Tensor]:
    """`generated_NAME` and `guided_logits_NAME` of every call of generate."""
    found = {}
    for call in (call for call in case.meta["calls"] if call["call"].startswith("generate(")):
        guidance = stepped_guidance(call, network.tokens)
        condition = Condition(labels=case.inputs["gen_labels"])
        ids, logits = greedy(network, NextToken(), condition, guidance)
        name = call["outputs"][0].removeprefix("generated_")
        found |= {f"generated_{name}": ids.int(), f"guided_logits_{name}": logits}
    return found
