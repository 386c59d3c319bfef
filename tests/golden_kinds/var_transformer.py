"""VAR's generator with its tokenizer: training, and sampling scale by scale, greedy and by mixtures of codes."""

import json
import re
import tempfile
from unittest.mock import patch

import torch
from torch import Tensor, nn

from golden_kinds import Case, bare
from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import GivenDraws
from pipeline.objectives.next_scale import NextScale
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.next_level import LevelChoice, LevelChooser
from pipeline.samplers.request import SamplingRequest

MATCHES = "models.var.VAR"
REPOSITORY = "FoundationVision/VAR"


def imported(case: Case) -> dict[str, nn.Module]:
    """What `import var_vqvae` and `import var` with its folder make of the two states that the case holds in a file."""
    stated = case.meta["constructor"]
    halves = [
        {key.removeprefix(prefix): value for key, value in case.state.items() if key.startswith(prefix)}
        for prefix in ("vae.", "var.")
    ]
    scales = {
        "sides": stated["var"]["patch_nums"],
        "phi_share": abs(stated["vae"]["quant_resi"]),
        "by_angle": stated["vae"]["using_znorm"],
    }
    options = {
        "heads": stated["var"]["num_heads"],
        "condition_drop": stated["var"]["cond_drop_rate"],
        "norm_epsilon": stated["var"]["norm_eps"],
    }
    parts = case.imported("var_vqvae", halves[0], **scales)
    with tempfile.TemporaryDirectory() as folder:
        parts["tokenizer"].save_pretrained(folder)
        return parts | case.imported("var", halves[1], tokenizer=folder, **options)


def outputs(case: Case) -> dict[str, Tensor]:
    parts = imported(case)
    tokenizer, network, objective = bare(parts["tokenizer"]), bare(parts["network"]), parts["objective"]
    return trained(case, network, objective) | sampled(case, tokenizer, network, objective)


def trained(case: Case, network: nn.Module, objective: NextScale) -> dict[str, Tensor]:
    codes, labels = case.inputs["codes"], case.inputs["labels"]
    dropped = case.inputs["drop_u"] < network.config.condition_drop
    condition = Condition(labels=torch.where(dropped, network.config.num_classes, labels))
    logits = network(codes, condition)
    loss = objective.loss(network, Code(ids=codes), condition)["next_scale"]
    loss.backward()
    first = network.blocks[0].attention.log_scales
    scales = {} if first is None else {"grad_scale_mul": first.grad[None, :, None, None]}
    return scales | {
        "var_input": network.tables.inputs(network.tables.rows(codes[..., None])),
        "logits": logits[:, :, 0],
        "loss": loss,
        "grad_word_embed": network.word_embedding.weight.grad,
        "grad_pos_start": network.start.grad[None],
        "grad_level_embed": network.level_embedding.weight.grad,
        "grad_class_emb": network.class_embedding.weight.grad,
        "grad_head_bias": network.head.outputs[0].bias.grad,
    }


@torch.no_grad()
def sampled(case: Case, tokenizer: nn.Module, network: nn.Module, objective: NextScale) -> dict[str, Tensor]:
    """Of every call that the description states by its name: plain, guided, smooth."""
    text, found = case.call("autoregressive_infer_cfg"), {}
    for name, settings in re.findall(r"(\w+): (\{[^}]*\})", text):
        stated = json.loads(settings)
        code, logits = generate(case, network, objective, stated)
        found |= {f"image_{name}": (tokenizer.decode(code) / 2 + 0.5).clamp(0, 1), f"guided_logits_{name}": logits}
        if not stated.get("more_smooth"):
            found[f"tokens_{name}"] = code.ids
    return found


def generate(case: Case, network: nn.Module, objective: NextScale, stated: dict) -> tuple[Code, Tensor]:
    """The code of a call, and the guided logits of all its levels."""
    labels, spec = case.inputs["sample_labels"], spec_of(network)
    smooth = stated.get("more_smooth", False)
    given = {"choice": torch.zeros(len(labels), spec.tokens, 1)}
    for level in range(len(spec.levels) if smooth else 0):  # gumbel = -log(exponential), and that is -log(1 - uniform)
        given[f"smooth_{level}_0"] = -torch.expm1(-case.inputs[f"smooth_exponential_{level}"])
    guidance = Guidance(1 + stated["cfg"], schedule="linear")
    choice = LevelChoice(top_k=stated.get("top_k", 1), smooth=smooth)
    request = SamplingRequest(network, Condition(labels), spec, GivenDraws(given), len(spec.levels), guidance)
    seen, guide = [], LevelChooser.guide

    def watched(chooser: LevelChooser, logits: Tensor) -> Tensor:
        seen.append(guide(chooser, logits))
        return seen[-1]

    with patch.object(LevelChooser, "guide", watched):
        code = objective.sample(request, choice)
    return code, torch.cat(seen, dim=1)


def spec_of(network: nn.Module) -> LatentSpec:
    config = network.config
    return LatentSpec(tuple(config.grid), config.dim, config.vocab, config.codebooks, tuple(config.levels))
