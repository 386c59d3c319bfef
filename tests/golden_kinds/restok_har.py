"""ResTok's generator, HAR: logits, loss and mask, and greedy generation unguided and under three schedules.

Where the case gives the number of steps, the share of a level is this project's i / (K - 1), and its step schedule is
`interval` but for the 1e-4 that it adds to a scale of 1. Without that number it counts tokens in an uneven way. Both
laws stand in `Scheduled`.
"""

import json
import re
from dataclasses import dataclass
from itertools import accumulate
from unittest.mock import patch

import torch
from torch import Tensor, nn

from golden_kinds import Case, bare
from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import ImageDraws
from pipeline.objectives.next_scale import NextScale
from pipeline.samplers.guidance import Guidance, drop
from pipeline.samplers.next_level import LevelChoice, LevelChooser
from pipeline.samplers.request import SamplingRequest

MATCHES = "autoregressive.models.gpt_har.Transformer"
SOFT = 1e-4  # what the case's schedules add to a scale


@dataclass(frozen=True)
class Scheduled(Guidance):
    """The case's schedules: the share of each level is given."""

    shares: tuple[float, ...] = ()
    law: str = "linear"
    window: float = 0.0

    def at(self, time: float) -> float:
        share = self.shares[round((1 - time) * (len(self.shares) - 1))]
        if self.law == "linear":
            return 1 + (self.scale - 1) * share + SOFT
        return self.scale if share >= self.window else 1 + SOFT


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    stated = case.meta["constructor"]
    options = {
        "heads": stated["n_head"],
        "single": stated["ar_token_num"],
        "condition_drop": stated["class_dropout_prob"],
    }
    network = bare(case.imported("restok_har", **options)["network"])
    return training(case, network) | generated(case, network)


def training(case: Case, network: nn.Module) -> dict[str, Tensor]:
    code, labels = Code(ids=case.inputs["tokens"]), Condition(labels=case.inputs["labels"])
    condition, seen = drop(network, labels, case.inputs["drop_u"]), []
    hook = network.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[4].keys))
    logits = network(code.ids, condition)[:, :, 0]
    hook.remove()
    loss = NextScale().loss(network, code, condition)["next_scale"]
    return {"logits": logits, "loss": loss, "mask": seen[0].long()}


def generated(case: Case, network: nn.Module) -> dict[str, Tensor]:
    """`generated_NAME` and `guided_logits_NAME` of every schedule that the call names."""
    values, condition = {}, Condition(labels=case.inputs["sample_labels"])
    config = network.config
    spec = LatentSpec(tuple(config.grid), 1, config.vocab, config.codebooks, tuple(config.levels))
    for name, settings in re.findall(r"(\w+): (\{.*?\}+)(?=[;.] )", case.call("generate(")):
        draws = ImageDraws.from_seeds(list(range(len(condition))))
        guidance = scheduled(json.loads(settings), spec)
        ids, logits = greedy(SamplingRequest(network, condition, spec, draws, len(spec.levels), guidance))
        values |= {f"generated_{name}": ids, f"guided_logits_{name}": logits}
    return values


def greedy(request: SamplingRequest) -> tuple[Tensor, Tensor]:
    """Ids [B, N], and the guided logits [B, N, vocab] that they are the likeliest of."""
    seen, guide = [], LevelChooser.guide

    def watched(chooser: LevelChooser, logits: Tensor) -> Tensor:
        seen.append(guide(chooser, logits))
        return seen[-1]

    with patch.object(LevelChooser, "guide", watched):
        code = NextScale().sample(request, LevelChoice(top_k=1))
    return code.ids, torch.cat(seen, dim=1)


def scheduled(settings: dict, spec: LatentSpec) -> Guidance:
    """The settings of a call of generate in this project's terms."""
    scale, law, more = (
        settings["guidance_scale"],
        settings.get("guidance_decay"),
        settings.get("cfg_schedule_kwargs", {}),
    )
    if law is None:
        return Guidance(scale)
    single, steps = spec.levels.count(1), more.get("num_steps")
    if steps:
        shares = [level / (steps - 1) for level in range(len(spec.levels))]
    else:
        before = [0, *accumulate(spec.levels)][:-1]
        shares = [0.0, 1 / (spec.tokens - 1), *(i / (single - 1) for i in range(2, single))]
        shares += [tokens / (spec.tokens - 1) for tokens in before[single:]]
    return Scheduled(scale, shares=tuple(shares), law=law, window=more.get("window_start", 0.0))
