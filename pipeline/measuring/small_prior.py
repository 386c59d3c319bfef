"""How learnable codes are: the loss of a small generator on new codes after a short training of fixed length."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.code import Code, LatentSpec
from pipeline.components import build
from pipeline.draws import StepDraws, mix
from pipeline.latents.code_source import CodeBatch
from pipeline.metrics.base import LearnedPrior
from pipeline.objectives.base import Objective
from pipeline.recipes.loops import Loop
from pipeline.training.ema import Averages
from pipeline.training.generation import Generation
from pipeline.training.loop import TrainingRun, train

SHAPE = {"depth": 4, "width": 128, "heads": 4}
PRIORS = {  # network and objective, by whether codes have ids
    True: ({"kind": "causal_transformer", "position": "learned"} | SHAPE, {"kind": "next_token"}),
    False: ({"kind": "diffusion_transformer"} | SHAPE, {"kind": "flow_matching"}),
}
LOGITS = 2**26  # at most so many in a batch
PASSES = 2  # over the new codes: as many draws of noise of each
CHECKS = 10  # of the loss on new codes in the course of a training
ASKED = 512  # new codes at most


@dataclass
class Codes:
    """Codes in memory as a training reads them, without conditions."""

    code: Code

    def __len__(self) -> int:
        return len(self.code)

    def batch(self, indices: Tensor, seeds: Tensor) -> CodeBatch:
        return CodeBatch(self.code[indices])


def learn(
    code: Code, new: Code, spec: LatentSpec, steps: int, folder: Path, seed: int, accelerator: Accelerator
) -> LearnedPrior:
    """Train a small network without conditions on `code` for so many steps, and ask its running average about `new`.

    It is asked `CHECKS` times, and the least loss counts: where codes are few, a network that has learned them by heart
    would say nothing of how learnable they are. The training's log is `folder`/metrics.jsonl.
    """
    shape, kind = PRIORS[bool(spec.vocab)]
    objective = build("objectives", kind)
    derived = {"grid": list(spec.grid), "dim": spec.dim, "vocab": spec.vocab, "codebooks": spec.codebooks}
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, "small prior"))
        network = build("networks", shape, num_classes=0, outputs=objective.outputs, **derived)
    loop = Loop(
        steps=steps,
        lr={"network": 2e-3},
        batch=batch_of(spec),
        warmup=steps // 10,
        schedule="cosine",
        ema=0.99,
        log_every=max(1, steps // 50),
    )
    course: dict[int, float] = {}
    new = new[:ASKED]

    def check(step: int, averages: Averages) -> bool:
        if step % max(1, steps // CHECKS) == 0:
            course[step] = loss_on(new, spec, averages()["network"], objective, seed)
        return False

    task = Generation(network, objective, {name: 1.0 for name in objective.terms})
    train(task, Codes(code), TrainingRun(loop, folder, seed, accelerator, after_step=check))
    described = {"network": shape, "objective": kind["kind"], "steps": steps, "batch": loop.batch, "lr": 2e-3}
    described |= {
        "trained_on": f"{len(code)} codes of the training split",
        "kept": f"the least of {len(course)} losses on {len(new)} codes",
    }
    return LearnedPrior(min(course.values()), course, described)


@torch.no_grad()
def loss_on(code: Code, spec: LatentSpec, network: nn.Module, objective: Objective, seed: int) -> float:
    """The sum of the objective's terms, a mean over `code`, with noise that is a function of the seed."""
    device = next(network.parameters()).device
    total, parts = 0.0, torch.arange(len(code)).split(batch_of(spec))
    for turn in range(PASSES):
        for number, places in enumerate(parts):
            draws = StepDraws(mix(seed, "prior", turn), number, slice(0, len(places)), len(places), device)
            part = code[places].to(device)
            terms = objective.loss(network, part, None, objective.draw(part, draws))
            total += sum(terms.values()).item() * len(places)
    return total / (PASSES * len(code))


def batch_of(spec: LatentSpec) -> int:
    """Codes a step: 64, or fewer where their logits would be too many."""
    return max(1, min(64, LOGITS // max(1, spec.tokens * spec.codebooks * spec.vocab)))
