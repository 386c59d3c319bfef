"""How learnable codes are: the loss of a small generator on new codes after a short training of fixed length."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.code import Code, LatentSpec
from pipeline.components import build
from pipeline.draws import StepDraws, mix
from pipeline.generation import Generation
from pipeline.latents import CodeBatch
from pipeline.loop import train
from pipeline.objectives.base import Objective
from pipeline.recipe import Loop

SHAPE = {"depth": 4, "width": 128, "heads": 4}
PRIORS = {  # network and objective, by whether codes have ids
    True: ({"kind": "causal_transformer", "position": "learned"} | SHAPE, {"kind": "next_token"}),
    False: ({"kind": "diffusion_transformer"} | SHAPE, {"kind": "flow_matching"}),
}
LOGITS = 2**26  # at most so many in a batch
LARGEST = 2**18  # codes, beyond which the table of the small network is no longer small
PASSES = 4  # over the new codes: as many draws of noise of each


@dataclass
class Codes:
    """Codes in memory as a training reads them, without conditions."""

    code: Code

    def __len__(self) -> int:
        return len(self.code)

    def batch(self, indices: Tensor, seeds: Tensor) -> CodeBatch:
        return CodeBatch(self.code[indices])


@dataclass
class SmallPrior:
    """A trained network of `SHAPE`, without conditions, and what trained it."""

    network: nn.Module
    objective: Objective
    described: dict[str, Any]

    @classmethod
    def fit(
        cls, code: Code, spec: LatentSpec, steps: int, folder: Path, seed: int, accelerator: Accelerator
    ) -> "SmallPrior":
        """Train on `code` for so many steps, and keep the running average; the log is `folder`/metrics.jsonl."""
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
        task = Generation(network, objective, {name: 1.0 for name in objective.terms()})
        network = train(task, Codes(code), loop, folder, seed, accelerator)["network"]
        described = {"network": shape, "objective": kind["kind"], "steps": steps, "batch": loop.batch, "lr": 2e-3}
        return cls(network, objective, described | {"trained_on": f"{len(code)} codes of the training split"})

    @torch.no_grad()
    def loss(self, code: Code, spec: LatentSpec, seed: int) -> float:
        """The sum of the objective's terms, a mean over `code`, with noise that is a function of the seed."""
        device = next(self.network.parameters()).device
        total, parts = 0.0, torch.arange(len(code)).split(batch_of(spec))
        for turn in range(PASSES):
            for number, places in enumerate(parts):
                draws = StepDraws(mix(seed, "prior", turn), number, slice(0, len(places)), len(places), device)
                part = code[places].to(device)
                terms = self.objective.loss(self.network, part, None, **self.objective.draw(part, draws))
                total += sum(terms.values()).item() * len(places)
        return total / (PASSES * len(code))


def batch_of(spec: LatentSpec) -> int:
    """Codes a step: 64, or fewer where their logits would be too many."""
    return max(1, min(64, LOGITS // max(1, spec.tokens * spec.codebooks * spec.vocab)))
