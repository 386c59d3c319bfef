"""Hita's generator: logits of both heads, losses, greedy generation, and the cached path."""

import re

import torch
from support.autoregressive_sampling import greedy
from support.guidance_laws import Call, stepped_guidance
from torch import Tensor, nn

from golden_kinds import Case, bare
from pipeline.code import Code, Condition
from pipeline.objectives.next_token_by_segment import NextTokenBySegment
from pipeline.samplers.guidance import Guidance

MATCHES = "autoregressive.models.gpt.Transformer"
REPOSITORY = "CVMI-Lab/Hita"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    stated = case.meta["constructor"]
    options = {
        "heads": stated["n_head"],
        "tokens": stated["block_size"],
        "condition_drop": stated["class_dropout_prob"],
    }
    network = bare(case.imported("hita_gpt", **options)["network"])
    return training(case, network) | generated(case, network) | cached(case, network)


def training(case: Case, network: nn.Module) -> dict[str, Tensor]:
    inputs, drop = case.inputs, case.meta["constructor"]["class_dropout_prob"]
    ids = torch.cat([inputs["holistic"], inputs["patch"]], dim=1)
    labels = torch.where(inputs["drop_u"] < drop, network.config.num_classes, inputs["labels"])
    condition = Condition(labels=labels)
    states = network.states(ids[..., None], condition)
    counts = network.counts
    losses = {}
    for name, part, own in zip(("holistic", "patch"), network(ids, condition).split(counts, 1), ids.split(counts, 1)):
        losses[f"loss_{name}"] = nn.functional.cross_entropy(part[:, :, 0].mT, own)
    return losses | {
        "logits": torch.cat([head(states, ids[..., None])[:, :, 0] for head in network.outputs], dim=-1),
        "loss": NextTokenBySegment().loss(network, Code(ids=ids), condition)["next_token_by_segment"],
    }


def generated(case: Case, network: nn.Module) -> dict[str, Tensor]:
    """`generated_NAME` and `guided_logits_NAME` of every set of options that a call of generate describes."""
    found = {}
    for call in (call for call in case.meta["calls"] if call["call"].startswith("generate(")):
        for name, guidance in guidances(call, network.tokens).items():
            condition = Condition(labels=case.inputs["sample_labels"])
            ids, logits = greedy(network, NextTokenBySegment(), condition, guidance)
            found |= {f"generated_{name}": ids, f"guided_logits_{name}": logits}
    return found


def guidances(call: Call, tokens: int) -> dict[str, Guidance]:
    """The guidance of each name: `guided: {"cfg_scale": 2.0, ...}; ...` in the call's description."""
    found, description = {}, str(call["description"])
    for name in (name.removeprefix("generated_") for name in call["outputs"] if name.startswith("generated_")):
        options = re.search(rf"\b{name}: \{{(.*?)\}}", description)[1]
        words = ", ".join(part.replace('"', "").replace(":", "=") for part in options.split(","))
        found[name] = stepped_guidance({"call": words}, tokens)
    return found


def cached(case: Case, network: nn.Module) -> dict[str, Tensor]:
    """Logits of sampling where the tokens are those given."""
    ids = torch.cat([case.inputs["holistic"], case.inputs["patch"]], dim=1)
    memory, seen, last = network.begin(len(ids), Condition(labels=case.inputs["labels"])), [], None

    def choose(logits: Tensor, number: int | slice) -> Tensor:
        seen.append(logits)
        return logits.argmax(dim=-1)

    for place in range(network.tokens):
        network.advance(memory, last, choose)
        last = ids[:, place, None]
    return {"cached_logits": torch.cat(seen, dim=1)}
