"""A small adversarial training for the tests of the loop; as a script, it trains in this process.

python tests/support/loop_task.py FOLDER STEPS SAVE_EVERY [PAUSE [PREVIEW_EVERY]]
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from pipeline.code import Batched
from pipeline.recipes.loops import Loop
from pipeline.training.loop import TrainingRun, train
from pipeline.training.previews import PreviewPicture, PreviewSources


@dataclass
class Rows(Batched):
    x: Tensor


class Numbers:
    """Forty rows; half of them are mirrored by their seed."""

    def __init__(self) -> None:
        self.rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.rows)

    def plain(self, indices: Tensor) -> Rows:
        return Rows(self.rows[indices])

    def batch(self, indices: Tensor, seeds: Tensor) -> Rows:
        return Rows(torch.where((seeds % 2 == 0)[:, None], self.rows[indices], -self.rows[indices]))


class Denoise:
    """Two players: one rebuilds noisy rows, the other tells rows from rebuilt ones."""

    def __init__(self, pause: float = 0.0, poison: tuple[int, ...] = ()):
        torch.manual_seed(0)
        maker = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6))
        self.players = {"maker": maker, "judge": nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))}
        self.metrics: dict[str, Tensor] = {}
        self.starts, self.judges, self.compared, self.new = {}, (), (), {}
        self.pause, self.poison, self.seen = pause, poison, []

    def held_out_terms(self, averages, batch, draws):
        return {"square": (averages["maker"](batch.x + 0.3 * draws.normal("noise", (6,))) - batch.x).square().mean()}

    def turns(self, batch, draws, step):
        time.sleep(self.pause)
        self.seen.append(batch.x)
        rebuilt = self.players["maker"](batch.x + 0.3 * draws.normal("noise", (6,)))
        loss = (rebuilt - batch.x).square().mean()
        yield "maker", {"square": loss * float("nan") if step in self.poison else loss}
        yield (
            "judge",
            {"gap": self.players["judge"](rebuilt.detach()).mean() + self.players["judge"](batch.x).square().mean()},
        )


def fit(
    folder: Path,
    task: Denoise | None = None,
    held_out: Numbers | None = None,
    accelerator: Accelerator | None = None,
    **changes,
) -> dict[str, nn.Module]:
    settings = {"steps": 12, "batch": 8, "lr": {"maker": 1e-2, "judge": 1e-2}, "ema": 0.9, "save_every": 0} | changes
    loop, rows = Loop(**settings), Numbers()
    sources = PreviewSources("maker", rows, held_out or rows, draw, folder / "pictures")
    asked = sources if loop.preview_every or loop.early_stop else None
    run = TrainingRun(loop, folder, 3, accelerator or Accelerator(cpu=True), preview_sources=asked)
    return train(task or Denoise(), rows, run)


def draw(averages: dict[str, nn.Module]) -> PreviewPicture:
    """Noise from the global generator, which a training goes on with as if nobody had drawn."""
    return PreviewPicture(Image.fromarray((torch.rand(8, 8) * 255).byte().numpy()))


def weights(players: dict[str, nn.Module]) -> Tensor:
    return torch.cat([p.detach().flatten() for name in sorted(players) for p in players[name].parameters()])


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = [*sys.argv[1:], "0", "0"][:5]
    place, pause = Path(given[0]), float(given[3])
    steps, save_every, preview_every = (int(given[number]) for number in (1, 2, 4))
    players = fit(place, Denoise(pause), steps=steps, save_every=save_every, preview_every=preview_every)
    torch.save(weights(players), Path(place) / f"weights_{Accelerator(cpu=True).process_index}.pt")
