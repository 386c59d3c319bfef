"""FAR: logits and losses, greedy generation with guidance of each id's own scale, and the cached path."""

import json
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden_kinds import Case, bare
from pipeline.code import Code, Condition
from pipeline.objectives.next_token import NextToken
from pipeline.samplers.guidance import guided_logits

MATCHES = "autoregressive.models.far_"
REPOSITORY = "showlab/FQGAN"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    stated = case.meta["constructor"]
    options = {name: stated[key] for name, key in (("heads", "n_head"), ("tokens", "block_size"))}
    network = bare(case.imported("far", **options, condition_drop=stated["class_dropout_prob"])["network"])
    found = training(case, network)
    for name in ("unguided", "guided"):
        found |= generated(case, network, name)
    return found | cached(case, network)


def given(case: Case) -> Tensor:
    """Ids [B, N, codebooks]."""
    names = sorted(name for name in case.inputs if name.startswith("tokens_"))
    return torch.stack([case.inputs[name] for name in names], dim=-1)


def by_codebook(name: str, values: Tensor, axis: int) -> dict[str, Tensor]:
    return {f"{name}_{k + 1}": value for k, value in enumerate(values.unbind(axis))}


def training(case: Case, network: nn.Module) -> dict[str, Tensor]:
    ids, labels, stated = given(case), case.inputs["labels"], case.meta["constructor"]
    dropped = case.inputs["drop_u"] < stated["class_dropout_prob"]
    condition = Condition(labels=torch.where(dropped, stated["num_classes"], labels))
    logits = network(ids, condition)
    losses = torch.stack([F.cross_entropy(logits[:, :, k].mT, ids[..., k]) for k in range(ids.shape[2])])
    loss = NextToken().loss(network, Code(ids=ids), condition)["next_token"]
    return by_codebook("logits", logits, 2) | by_codebook("loss", losses, 0) | {"loss": loss}


def generated(case: Case, network: nn.Module, name: str) -> dict[str, Tensor]:
    """`tokens_NAME` and `guided_logits_NAME`; a scale of 0 there is no guidance, which is 1 here."""
    law = re.search(rf"\b{name}: cfg_scale per sub-token (\[[^\]]*\])", case.call("generate_fq"))
    scales = [scale or 1.0 for scale in json.loads(law[1])]
    condition = Condition(labels=case.inputs["sample_labels"])
    both, seen, ids, last = Condition.cat([condition, network.null(condition)]), [], [], None

    def choose(logits: Tensor, codebook: int) -> Tensor:
        mixed = guided_logits(logits, scales[codebook])
        seen.append(mixed)
        return torch.cat([mixed.argmax(dim=-1)] * 2)

    memory = network.begin(len(both), both)
    for _ in range(network.tokens):
        last = network.advance(memory, last, choose)
        ids.append(last[: len(condition)])
    logits = torch.cat(seen, dim=1).unflatten(1, (network.tokens, len(scales)))
    tokens = by_codebook(f"tokens_{name}", torch.stack(ids, dim=1), 2)
    return tokens | by_codebook(f"guided_logits_{name}", logits, 2)


def cached(case: Case, network: nn.Module) -> dict[str, Tensor]:
    """The logits of a sampling that is made to choose the given ids."""
    ids, seen, last = given(case), [], None
    memory = network.begin(len(ids), Condition(labels=case.inputs["labels"]))
    for i in range(network.tokens):

        def choose(logits: Tensor, codebook: int, place: int = i) -> Tensor:
            seen.append(logits)
            return ids[:, place : place + 1, codebook]

        last = network.advance(memory, last, choose)
    logits = torch.cat(seen, dim=1).unflatten(1, (network.tokens, ids.shape[2]))
    return by_codebook("cached_logits", logits, 2)
