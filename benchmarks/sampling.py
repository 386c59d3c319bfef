"""Times sampling against the bare network evaluations it needs, and against diffusers' DiTPipeline.

    python benchmarks/sampling.py [--rounds 3] [--threads 2] [--steps 50] [--images 4] [--precision fp32]

DiT-S/2 on latents [4, 4, 16, 16], 1,000 classes, learned variance, guided: both halves in one batch of 8. What is
timed is denoising, from noise to latents: no decoder (DiTPipeline's is replaced by one that returns its input). `bare`
calls our network as often on a batch of 8 and does nothing else. The ways alternate in one process; the table holds
medians, and ratios are medians of the rounds' ratios, so that other work on the machine falls on all. `to own network`
is a run's time over the part of it that was spent inside its network's forward, which other work hardly moves.
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

SPEC, CLASSES, SCALE = LatentSpec(grid=(16, 16), dim=4), 1000, 4.0
TARGETS = {"bare": 1.05, "DiTPipeline": 1.0}  # the most our DDIM may take, as a multiple of these


@dataclass
class Way:
    """A run from noise to latents, and the network whose share of it is measured."""

    run: Callable[[], object]
    network: nn.Module

    def seconds(self) -> tuple[float, float]:
        """Of the whole run, and of its network's calls."""
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


def our_network(outputs: int, dtype: torch.dtype) -> DiffusionTransformer:
    shape = {"depth": 12, "width": 384, "heads": 6, "patch_size": 2, "outputs": outputs}
    return DiffusionTransformer(list(SPEC.grid), SPEC.dim, CLASSES, **shape).to(dtype).eval()


def bare(images: int, steps: int, dtype: torch.dtype) -> Way:
    network = our_network(2, dtype)
    z, u = torch.randn(2 * images, *SPEC.shape, dtype=dtype), torch.full((2 * images,), 0.5)
    condition = Condition(labels=torch.arange(2 * images))

    @torch.no_grad()
    def run() -> None:
        for _ in range(steps):
            network(z, u, condition)

    return Way(run, network)


def ours(objective: FlowMatching | GaussianDiffusion, solver: str, images: int, steps: int, dtype: torch.dtype) -> Way:
    network, condition = our_network(objective.outputs, dtype), Condition(labels=torch.arange(images))

    def run() -> None:
        draws = ImageDraws.from_seeds(list(range(images)))
        request = SamplingRequest(network, condition, SPEC, draws, steps, Guidance(SCALE, channels=3))
        objective.sample(request, objective.read_settings({"solver": solver}))

    return Way(run, network)


def dit_pipeline(images: int, steps: int, dtype: torch.dtype) -> Way:
    network = DiTTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=64,
        in_channels=SPEC.dim,
        out_channels=2 * SPEC.dim,
        num_layers=12,
        sample_size=SPEC.grid[0],
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )
    decoder = AutoencoderKL(latent_channels=SPEC.dim)
    decoder.decode = lambda latents: SimpleNamespace(sample=latents)
    pipe = DiTPipeline(network.to(dtype).eval(), decoder, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(images)]

    def run() -> None:
        pipe(list(range(images)), SCALE, generators, steps, output_type="pt")

    return Way(run, network)


def compare(ways: dict[str, Way], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of every round by way, whole and inside the network; the order turns by one from round to round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(ways[name].seconds())
    return times


def ratio(times: dict[str, list[tuple[float, float]]], name: str, to: str) -> float:
    return statistics.median(a / b for (a, _), (b, _) in zip(times[name], times[to]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    work = (options.images, options.steps, {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision])
    ways = {
        "bare": bare(*work),
        "DDIM": ours(GaussianDiffusion(), "ddim", *work),
        "DDPM": ours(GaussianDiffusion(), "ddpm", *work),
        "Euler": ours(FlowMatching(), "euler", *work),
        "DiTPipeline": dit_pipeline(*work),
    }
    compare(ways, 1)  # first allocations
    times = compare(ways, options.rounds)
    print(f"{options.images} images, {options.steps} steps, {options.precision}, {options.threads} threads")
    print(f"{'':12}{'seconds':>10}{'to own network':>16}{'to bare':>10}{'to DiTPipeline':>16}")
    for name in ways:
        to = [ratio(times, name, other) for other in ("bare", "DiTPipeline")]
        whole, own = statistics.median(a for a, _ in times[name]), statistics.median(a / b for a, b in times[name])
        print(f"{name:12}{whole:10.2f}{own:16.4f}{to[0]:10.3f}{to[1]:16.3f}")
    for other, most in TARGETS.items():
        found = ratio(times, "DDIM", other)
        print(f"DDIM to {other}: {found:.3f}, target {most} at most: {'met' if found <= most else 'MISSED'}")


if __name__ == "__main__":
    main()
