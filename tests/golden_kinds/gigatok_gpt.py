"""GigaTok's generator: logits, loss, states, and greedy generation unguided and under two schedules.

The step schedule is `interval` and `first_full` here. The linear one, which no published number is of, is 1 + (scale -
1) i / (N - 1) from the second token on; `linear` here is of i / N, and the case's own law stands in `Linear`.
"""

import json
import math
import re
from dataclasses import dataclass

import torch
from support.autoregressive_sampling import greedy
from torch import Tensor

from golden_kinds import Case, bare
from pipeline.code import Code, Condition
from pipeline.objectives.next_token import NextToken
from pipeline.samplers.guidance import Guidance, drop

MATCHES = "autoregressive.models.gpt_1d.Transformer"


@dataclass(frozen=True)
class Linear(Guidance):
    """The case's linear schedule of so many tokens."""

    tokens: int = 2

    def at(self, time: float) -> float:
        i = round((1 - time) * self.tokens)
        return self.scale if i == 0 else 1 + (self.scale - 1) * i / (self.tokens - 1) + 1e-4


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    stated = case.meta["constructor"]
    options = {"heads": stated["n_head"], "condition_drop": stated["class_dropout_prob"]}
    network = bare(case.imported("gigatok_gpt", **options)["network"])
    return training(case, network) | generated(case, network)


def training(case: Case, network: torch.nn.Module) -> dict[str, Tensor]:
    code, labels = Code(ids=case.inputs["tokens"]), Condition(labels=case.inputs["labels"])
    condition = drop(network, labels, case.inputs["drop_u"])
    states, values = {}, {}
    hooks = [
        block.register_forward_hook(lambda layer, inputs, output, i=i: states.update({i: output}))
        for i, block in enumerate(network.blocks, start=1)
    ]
    values["logits"] = network(code.ids, condition)[:, :, 0]
    for hook in hooks:
        hook.remove()
    values |= {f"inner_features_{i}": state for i, state in states.items()}
    return values | {"loss": NextToken().loss(network, code, condition)["next_token"]}


def generated(case: Case, network: torch.nn.Module) -> dict[str, Tensor]:
    """`generated_NAME` and `guided_logits_NAME` of every schedule that the call names."""
    values, condition = {}, Condition(labels=case.inputs["sample_labels"])
    for name, settings in re.findall(r"(\w+): (\{.*?\}+)(?=[;.] )", case.call("generate(")):
        ids, logits = greedy(network, NextToken(), condition, guidance(json.loads(settings), network.tokens))
        values |= {f"generated_{name}": ids, f"guided_logits_{name}": logits}
    return values


def guidance(settings: dict, tokens: int) -> Guidance:
    """The settings of a call of generate in this project's terms."""
    scale, schedule = settings["cfg_scale"], settings.get("cfg_schedule")
    if schedule == "linear":
        return Linear(scale, tokens=tokens)
    if schedule == "step":
        first = math.ceil(settings["cfg_schedule_kwargs"]["window_start"] * (tokens - 1))
        return Guidance(scale, interval=(0.0, 1 - first / tokens), first_full=True)
    return Guidance(scale)
