"""Times HAR, which makes all ids of a level at once, against next-token sampling by as large a network.

    python benchmarks/level_sampling.py [--rounds 5] [--threads 1] [--images 16] [--levels 1 1 1 1 4 8 16 32 64]
        [--depth 12] [--width 384] [--heads 6] [--vocab 8192] [--guidance 2.0]

Both networks have LlamaGen's blocks and random weights, and make as many pictures' codes of ResTok's levels, guided, so
that every evaluation has two rows a picture; `NextScale.sample` and `NextToken.sample` are timed whole. Evaluations of
the network are counted while they run. The two alternate in one process; seconds are medians of the rounds, and the
ratio is the median of the rounds' ratios, so that other work on the machine slows both. Several numbers of
pictures are measured one after another.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.code import Code, Condition, LatentSpec
from pipeline.draws import ImageDraws
from pipeline.networks.causal_transformer import CausalTransformer
from pipeline.networks.parallel_level_transformer import ParallelLevelTransformer
from pipeline.objectives.next_scale import NextScale
from pipeline.objectives.next_token import NextToken
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.request import SamplingRequest

CLASSES = 1000
SAMPLERS = ("levels", "tokens")


@dataclass(frozen=True)
class Work:
    """What is sampled, by what size of network."""

    levels: tuple[int, ...]
    depth: int
    width: int
    heads: int
    vocab: int
    guidance: float

    @property
    def spec(self) -> LatentSpec:
        return LatentSpec((sum(self.levels),), 8, self.vocab, levels=self.levels)

    def network(self, sampler: str) -> nn.Module:
        shape = {"depth": self.depth, "width": self.width, "heads": self.heads, "feed_forward_multiple": 256}
        grid = list(self.spec.grid)
        if sampler == "levels":
            made = ParallelLevelTransformer(grid, list(self.levels), self.vocab, CLASSES, **shape)
        else:
            made = CausalTransformer(grid, self.vocab, CLASSES, position="rotary_sequence", **shape)
        nn.init.normal_(made.head.outputs[0].weight, std=0.02)
        return made.eval()

    def sample(self, sampler: str, network: nn.Module, images: int) -> Code:
        objective, steps = (NextScale(), len(self.levels)) if sampler == "levels" else (NextToken(), sum(self.levels))
        condition, draws = Condition(labels=torch.arange(images) % CLASSES), ImageDraws.from_seeds(list(range(images)))
        return objective.sample(SamplingRequest(network, condition, self.spec, draws, steps, Guidance(self.guidance)))


def count_evaluations(network: nn.Module, sample: Callable[[], Code]) -> tuple[int, int]:
    """Evaluations of the network in one sampling, and the tokens of the code that it gives."""
    calls: list[nn.Module] = []
    hook = network.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    tokens = sample().ids.shape[1]
    hook.remove()
    return len(calls), tokens


def alternate(samplings: dict[str, Callable[[], Code]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round; which one begins changes from round to round."""
    times: dict[str, list[float]] = {name: [] for name in samplings}
    for turn in range(rounds):
        for name in list(samplings)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            samplings[name]()
            times[name].append(time.perf_counter() - start)
    return times


def compare(work: Work, images: int, rounds: int) -> None:
    networks = {name: work.network(name) for name in SAMPLERS}
    samplings = {name: lambda name=name: work.sample(name, networks[name], images) for name in SAMPLERS}
    counts = {name: count_evaluations(networks[name], samplings[name]) for name in SAMPLERS}  # and a first, cold run
    times = alternate(samplings, rounds)
    print(f"{images} pictures guided, {len(work.levels)} levels, {rounds} rounds, {torch.get_num_threads()} threads")
    for name, seconds in times.items():
        steps, tokens = counts[name]
        size = sum(parameter.numel() for parameter in networks[name].parameters()) / 1e6
        print(f"{name:8}{size:8.2f} M{steps:6} steps{tokens:6} tokens{statistics.median(seconds):10.3f} s")
    ratios = [slow / fast for fast, slow in zip(times["levels"], times["tokens"])]
    print(f"levels are {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} ... {max(ratios):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"rounds": 5, "threads": 1, "depth": 12, "width": 384, "heads": 6, "vocab": 8192}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--images", type=int, nargs="+", default=[16])
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 1, 1, 1, 4, 8, 16, 32, 64])
    parser.add_argument("--guidance", type=float, default=2.0)
    options = vars(parser.parse_args())
    rounds, images, levels = options.pop("rounds"), options.pop("images"), tuple(options.pop("levels"))
    torch.set_num_threads(options.pop("threads"))
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    work = Work(levels=levels, **options)
    for count in images:
        compare(work, count, rounds)


if __name__ == "__main__":
    main()
