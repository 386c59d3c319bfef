"""Times sampling against the bare network evaluations it needs, and against diffusers' DiTPipeline.

    python benchmarks/sampling.py [--rounds 3] [--threads 2] [--steps 50] [--images 4] [--precision fp32] [--depth 12]

DiT-S/2 on latents [4, 4, 16, 16], 1,000 classes, learned variance, guided: both halves in one batch of 8. Only
denoising is timed, from noise to latents: no decoder (DiTPipeline's is replaced by one that returns its input). `bare`
calls our network as many times on a batch of 8 and does nothing else. The methods alternate in one process; the table
holds medians, and ratios are medians of the rounds' ratios, so that other work on the machine slows all of them.
`to own network` is a run's time over the time inside its network's forward, which other work hardly changes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import nn

from pipeline.code import Condition, LatentSpec
from pipeline.draws import ImageDraws
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.objectives.gaussian_diffusion import GaussianDiffusion
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.request import SamplingRequest

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SPEC, CLASSES, SCALE = LatentSpec(grid=(16, 16), dim=4), 1000, 4.0
TARGETS = {"bare": 1.05, "DiTPipeline": 1.0}  # the most time of our DDIM, as a multiple of theirs


@dataclass(frozen=True)
class Work:
    """What is sampled, by what size of network."""

    images: int
    steps: int
    depth: int
    dtype: torch.dtype

    def network(self, outputs: int) -> DiffusionTransformer:
        shape = {"depth": self.depth, "width": 384, "heads": 6, "patch_size": 2, "outputs": outputs}
        return DiffusionTransformer(list(SPEC.grid), SPEC.dim, CLASSES, **shape).to(self.dtype).eval()


@dataclass(frozen=True)
class Method:
    """One method of sampling: a run from noise to latents, and the network that it calls."""

    run: Callable[[], object]
    network: nn.Module

    def seconds(self) -> tuple[float, float]:
        """Of a whole run, and of its network's calls."""
        inside, marks = [0.0], []

        def leave(*_) -> None:
            inside[0] += time.perf_counter() - marks.pop()

        hooks = [
            self.network.register_forward_pre_hook(lambda *_: marks.append(time.perf_counter())),
            self.network.register_forward_hook(leave),
        ]
        start = time.perf_counter()
        self.run()
        whole = time.perf_counter() - start
        for hook in hooks:
            hook.remove()
        return whole, inside[0]


def bare(work: Work) -> Method:
    network, rows = work.network(2), 2 * work.images
    z, u = torch.randn(rows, *SPEC.shape, dtype=work.dtype), torch.full((rows,), 0.5)
    condition = Condition(labels=torch.arange(rows))

    @torch.no_grad()
    def run() -> None:
        for _ in range(work.steps):
            network(z, u, condition)

    return Method(run, network)


def ours(objective: FlowMatching | GaussianDiffusion, solver: str, work: Work) -> Method:
    network, condition = work.network(objective.outputs), Condition(labels=torch.arange(work.images))

    def run() -> None:
        draws = ImageDraws.from_seeds(list(range(work.images)))
        request = SamplingRequest(network, condition, SPEC, draws, work.steps, Guidance(SCALE, channels=3))
        objective.sample(request, objective.read_settings({"solver": solver}))

    return Method(run, network)


def dit_pipeline(work: Work) -> Method:
    network = DiTTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=64,
        in_channels=SPEC.dim,
        out_channels=2 * SPEC.dim,
        num_layers=work.depth,
        sample_size=SPEC.grid[0],
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )
    decoder = AutoencoderKL(latent_channels=SPEC.dim)
    decoder.decode = lambda latents: SimpleNamespace(sample=latents)
    pipe = DiTPipeline(network.to(work.dtype).eval(), decoder, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(work.images)]

    def run() -> None:
        pipe(list(range(work.images)), SCALE, generators, work.steps, output_type="pt")

    return Method(run, network)


def compare(methods: dict[str, Method], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of every round, of the run and inside the network; the order rotates by one from round to round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    names = list(methods)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(methods[name].seconds())
    return times


def ratio(times: dict[str, list[tuple[float, float]]], name: str, to: str) -> float:
    return statistics.median(a / b for (a, _), (b, _) in zip(times[name], times[to]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--depth", type=int, default=12, help="blocks; fewer are a quick look at the same shape")
    parser.add_argument("--precision", choices=list(TYPES), default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    work = Work(options.images, options.steps, options.depth, TYPES[options.precision])
    methods = {
        "bare": bare(work),
        "DDIM": ours(GaussianDiffusion(), "ddim", work),
        "DDPM": ours(GaussianDiffusion(), "ddpm", work),
        "Euler": ours(FlowMatching(), "euler", work),
        "DiTPipeline": dit_pipeline(work),
    }
    compare(methods, 1)  # first allocations
    times = compare(methods, options.rounds)
    print(f"{options.images} images, {options.steps} steps, {options.precision}, {options.threads} threads")
    print(f"{'':12}{'seconds':>10}{'to own network':>16}{'to bare':>10}{'to DiTPipeline':>16}")
    for name in methods:
        to = [ratio(times, name, other) for other in ("bare", "DiTPipeline")]
        seconds = statistics.median(run for run, _ in times[name])
        to_network = statistics.median(run / network for run, network in times[name])
        print(f"{name:12}{seconds:10.2f}{to_network:16.4f}{to[0]:10.3f}{to[1]:16.3f}")
    for other, most in TARGETS.items():
        multiple = ratio(times, "DDIM", other)
        print(f"DDIM to {other}: {multiple:.3f}, target {most} at most: {'met' if multiple <= most else 'MISSED'}")


if __name__ == "__main__":
    main()
