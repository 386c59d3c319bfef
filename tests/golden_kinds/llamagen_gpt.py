"""LlamaGen's generator: logits, losses and greedy generation with and without guidance."""

import re

import torch
from autoregressive_sampling import greedy
from torch import Tensor

from golden_kinds import Case, bare
from pipeline.code import Code, Condition
from pipeline.objectives.next_token import NextToken
from pipeline.published.llamagen_gpt import convert
from pipeline.samplers.guidance import Guidance

MATCHES = "autoregressive.models.gpt.Transformer"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    stated = case.meta["constructor"]
    network = convert(case.state, stated["n_head"], stated["block_size"], stated["multiple_of"])["network"]
    network = bare(network)
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
        scale = float(re.search(r"cfg_scale=([\d.]+)", call["call"]).group(1))
        stop = re.search(r"after token index (\d+)", call["description"])
        low = 0.0 if stop is None else 1 - int(stop.group(1)) / network.tokens
        guidance = Guidance(scale, interval=(low, 1.0))
        condition = Condition(labels=case.inputs["gen_labels"])
        ids, logits = greedy(network, NextToken(), condition, guidance)
        name = call["outputs"][0].removeprefix("generated_")
        found |= {f"generated_{name}": ids.int(), f"guided_logits_{name}": logits}
    return found
