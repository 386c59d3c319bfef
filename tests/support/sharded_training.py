"""Two small trainings of players with blocks; as a script, one of several processes that divide them.

python tests/support/sharded_training.py KIND FOLDER STEPS WHETHER_SHARDED
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.code import Code, Condition
from pipeline.components import build
from pipeline.critics.patch import Patch
from pipeline.images.reading import ImageBatch
from pipeline.latents.code_source import CodeBatch
from pipeline.losses.pixel import Pixel
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.recipes.adversary import Adversary
from pipeline.recipes.generator_training import Adapter, GeneratorTraining, Start
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.runs.sharding import Sharding
from pipeline.training.generation import Generation
from pipeline.training.loop import TrainingRun, train
from pipeline.training.reconstruction import Reconstruction
from pipeline.training.task import Task
from pipeline.training.tuning import tune

SIZES = {"width": 16, "depth": 2, "heads": 2}
LOOP = Loop(6, {"network": 1e-3}, batch=8, weight_decay=0.1, clip=0.05, ema=0.5, save_every=3)


class Rows:
    """Sixteen images [3, 8, 8] of one colour and some noise, or their sixteen codes [16, 6]."""

    def __init__(self, kind: str):
        draw = torch.Generator().manual_seed(1)
        shape = (16, 3, 1, 1) if kind == "tokenizer" else (16, 16, 6)
        self.rows = torch.rand(shape, generator=draw) * 2 - 1
        if kind == "tokenizer":
            self.rows = self.rows + 0.1 * torch.randn(16, 3, 8, 8, generator=draw)
        self.kind = kind

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, seeds: Tensor) -> Any:
        if self.kind == "tokenizer":
            return ImageBatch(self.rows[indices])
        text = self.rows[indices, :3]  # [B, 3, 6]
        mask = torch.arange(3) < 1 + indices[:, None] % 3
        return CodeBatch(Code(self.rows[indices]), None, Condition(indices % 5, text, mask))


def task_of(kind: str) -> tuple[Task, Loop]:
    """A transformer against a critic, whose weight depends on gradients; a generator that reads captions, by the
    optimiser `kind`; one that an adapter alone, and a new table of labels, are trained of."""
    torch.manual_seed(0)
    if kind == "adapter":
        network, rates = randomised(DiffusionTransformer([4, 4], 6, 5, **SIZES)), {"network": 1e-3, "new": 3e-3}
        start, loop = Start("nowhere", reinitialise=("labels",)), replace(LOOP, lr=rates)
        new = tune(network, GeneratorTraining(loop, start=start, adapter=Adapter(2, layers="all")))
        return Generation(network, FlowMatching(), {"flow": 1.0}, new=new), loop
    if kind != "tokenizer":
        text = {"text_tokens": 3, "text_dim": 6, "text_reading": "cross_attention", "text_null": "empty"}
        network = DiffusionTransformer([4, 4], 6, 5, **SIZES, **text)
        return Generation(randomised(network), FlowMatching(), {"flow": 1.0}), replace(LOOP, optimizer={"kind": kind})
    rates = {"tokenizer": 1e-3, "critic": 1e-3}
    adversary = Adversary({"kind": "patch"}, start=1, adaptive=True)
    neck = {"kind": "gaussian", "dim": 4}
    weights = {"pixel": 1.0, "kl": 1e-3, "adversarial": 0.5}
    balance = {"kl": "encoder.transformer.blocks.0.feed_forward.down.weight"}
    phase = Phase(replace(LOOP, lr=rates), weights, balance=balance, adversary=adversary)
    tokenizer = build(
        "tokenizers", {"kind": "vit_autoencoder", "bottleneck": neck, "patch_size": 4} | SIZES, image_size=8
    )
    losses = {"pixel": Pixel()}
    return Reconstruction(randomised(tokenizer), phase, losses, Patch(width=8, layers=1)), phase.loop


def randomised(module: nn.Module) -> nn.Module:
    """Without the zeros that many layers begin with, by which blocks have no gradient."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return module


def fit(kind: str, folder: Path, steps: int = 6, sharded: bool = False) -> dict[str, Tensor]:
    """The averages after `steps` of six; all processes have them whole."""
    task, loop = task_of(kind)
    sharding = Sharding() if sharded else None
    run = TrainingRun(replace(loop, steps=steps), folder, 3, Accelerator(cpu=True), sharding=sharding)
    averages = train(task, Rows(kind), run)
    return {f"{name}.{key}": value for name, one in averages.items() for key, value in one.state_dict().items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = fit(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "sharded")
    if Accelerator(cpu=True).is_main_process:
        torch.save(made, Path(sys.argv[2]) / "averages.pt")
