"""A small training with several codebooks for the tests of quantisers; as a script, it trains in this process.

python tests/support/codebook_task.py FOLDER
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline import components
from pipeline.code import Batched
from pipeline.draws import Draws, PartDraws
from pipeline.recipes.loops import Loop
from pipeline.training.loop import TrainingRun, train

ROW = {"kind": "vector_quantize", "dim": 4, "vocab": 12, "decay": 0.6}
NECKS = {
    "unit": ROW | {"restart": 0.3},
    "ema": ROW | {"unit_norm": False, "learn": "ema", "restart": 0.3, "sampling_temperature": 0.05},
    "clustered": {"kind": "online_clustered", "dim": 4, "vocab": 12, "decay": 0.6},
    "clustered_unit": {"kind": "online_clustered", "dim": 4, "vocab": 12, "unit_norm": True},
    "shared": {"kind": "residual", "bottleneck": ROW | {"learn": "ema"}, "codebooks": 2, "shared": True, "scale": 0.5},
}
IN_ONE_BATCH = {
    "k_means": ROW | {"start": "kmeans", "learn": "ema", "unit_norm": False},
    "entropy": ROW | {"start": "kmeans", "restart": 0.3, "entropy_temperature": 0.1, "gradient": "rotation"},
}  # what looks at more than a micro-batch before it is there


@dataclass
class Rows(Batched):
    x: Tensor


class Numbers:
    """Forty images of five rows of six numbers.

    With this seed no row is so near to two codes that rounding decides between them, which half of the seeds have:
    rows moved by 3e-5 train the same codebooks up to 4e-4.
    """

    def __init__(self) -> None:
        self.rows = torch.randn(40, 5, 6, generator=torch.Generator().manual_seed(12))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, seeds: Tensor) -> Rows:
        return Rows(self.rows[indices])


class Squeeze(nn.Module):
    """Rows to four channels, through every neck, and back."""

    def __init__(self, nodes: dict[str, components.Node]):
        super().__init__()
        self.encoder = nn.Linear(6, 4)
        self.necks = nn.ModuleDict({name: components.build("bottlenecks", node) for name, node in nodes.items()})
        self.decoder = nn.Linear(4, 6)

    def forward(self, x: Tensor, draws: Draws) -> Tensor:
        h, loss = self.encoder(x), 0.0
        for name, neck in self.necks.items():
            code, terms = neck(h, PartDraws(draws, name))
            loss = loss + (self.decoder(code.z) - x).square().mean() + sum(terms.values())
        return loss


class Rebuild:
    """A task with one player."""

    def __init__(self, nodes: dict[str, components.Node], poison: tuple[int, ...] = ()):
        torch.manual_seed(0)
        self.players: dict[str, nn.Module] = {"squeeze": Squeeze(nodes)}
        self.metrics: dict[str, Tensor] = {}
        self.starts, self.judges, self.compared, self.new = {}, (), (), {}
        self.poison = poison

    def turns(self, batch, draws, step):
        x = batch.x * float("nan") if step in self.poison else batch.x
        yield "squeeze", {"loss": self.players["squeeze"](x, draws)}


def fit(folder: Path, nodes: dict[str, components.Node] = NECKS, poison: tuple[int, ...] = (), **changes) -> Squeeze:
    """The average of the weights after a training."""
    settings = {"steps": 12, "batch": 8, "lr": {"squeeze": 1e-2}, "ema": 0.9, "save_every": 0} | changes
    loop, accelerator = Loop(**settings), Accelerator(cpu=True)
    return train(Rebuild(nodes, poison), Numbers(), TrainingRun(loop, folder, 3, accelerator))["squeeze"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    averages = fit(Path(sys.argv[1]), NECKS | IN_ONE_BATCH)
    torch.save(averages.state_dict(), Path(sys.argv[1]) / f"average_{Accelerator(cpu=True).process_index}.pt")
