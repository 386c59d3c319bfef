"""Times a training step of DiffusionTransformer against diffusers' DiTTransformer2DModel of the same shape.

    python benchmarks/training_step.py [--pairs 7] [--threads 2] [--shapes S/2 S/1] [--precisions fp32 bf16]

A step is forward, mean squared error, backward, AdamW and EMA, with the same batch. diffusers: `EMAModel`, and AdamW
with its defaults. Ours: compiled blocks, fused AdamW, one foreach EMA. Steps alternate in one process; the table holds
medians, and the ratio is the median of the pairs' ratios, so that other work on the machine slows both.

bf16 (autocast) is meaningful only where the CPU has bf16 arithmetic (AMX or AVX-512 BF16); elsewhere it is emulated, an
order of magnitude slower than fp32, and the benchmark says so.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from diffusers.training_utils import EMAModel

from pipeline.code import Condition
from pipeline.networks.diffusion_transformer import DiffusionTransformer

CLASSES, DIM = 1000, 4
WARM_UP = 3  # steps of each that are not timed: compilation, first allocations


@dataclass(frozen=True)
class Shape:
    """DiT-S on latents [B, 4, size, size]."""

    patch: int
    size: int
    batch: int


SHAPES = {"S/2": Shape(patch=2, size=16, batch=32), "S/1": Shape(patch=1, size=16, batch=8)}  # 64 and 256 tokens
TARGETS = {("S/2", "fp32"): 0.93, ("S/2", "bf16"): 0.60, ("S/1", "bf16"): 0.68}
Step = Callable[[], None]


def our_step(shape: Shape, bf16: bool, depth: int, compiled: bool) -> Step:
    network = DiffusionTransformer(
        [shape.size] * 2, DIM, CLASSES, depth=depth, width=384, heads=6, outputs=2, patch_size=shape.patch
    )
    if compiled:
        network.compile_repeated_blocks(fullgraph=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    weights = list(network.parameters())
    average = [w.detach().clone() for w in weights]
    x, y = torch.randn(2, shape.batch, shape.size**2, DIM)
    u, condition = torch.rand(shape.batch), Condition(labels=torch.randint(CLASSES, (shape.batch,)))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            prediction = network(x, u, condition)
        F.mse_loss(prediction[..., :DIM].float(), y).backward()
        optimiser.step()
        optimiser.zero_grad()
        torch._foreach_lerp_(average, [w.detach() for w in weights], 1e-4)

    return step


def diffusers_step(shape: Shape, bf16: bool, depth: int) -> Step:
    network = DiTTransformer2DModel(
        num_attention_heads=6,
        attention_head_dim=64,
        in_channels=DIM,
        out_channels=2 * DIM,
        num_layers=depth,
        sample_size=shape.size,
        patch_size=shape.patch,
        num_embeds_ada_norm=CLASSES,
    ).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0)
    average = EMAModel(network.parameters(), decay=0.9999)
    x, y = torch.randn(2, shape.batch, DIM, shape.size, shape.size)
    t, labels = torch.randint(1000, (shape.batch,)), torch.randint(CLASSES, (shape.batch,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            prediction = network(x, timestep=t, class_labels=labels).sample
        F.mse_loss(prediction[:, :DIM].float(), y).backward()
        optimiser.step()
        optimiser.zero_grad()
        average.step(network.parameters())

    return step


def seconds(step: Step, clock: Callable[[], float]) -> float:
    start = clock()
    step()
    return clock() - start


def compare(shape: Shape, bf16: bool, options: argparse.Namespace) -> tuple[float, float, float]:
    """Median seconds of diffusers' step and of ours, and the median of ours / theirs over alternating pairs."""
    if not options.eager:
        torch._dynamo.reset()
    theirs = diffusers_step(shape, bf16, options.depth)
    ours = our_step(shape, bf16, options.depth, not options.eager)
    for _ in range(WARM_UP):
        theirs(), ours()
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    times = [(seconds(theirs, clock), seconds(ours, clock)) for _ in range(options.pairs)]
    their_times, our_times = zip(*times)
    return statistics.median(their_times), statistics.median(our_times), statistics.median(b / a for a, b in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="alternating pairs of steps that are timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu, with --threads 1, on a busy machine"
    )
    parser.add_argument("--depth", type=int, default=12, help="blocks; fewer are a quick look at the same shape")
    parser.add_argument("--eager", action="store_true", help="ours without compilation")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if "bf16" in options.precisions and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        print("this CPU has no bf16 arithmetic: rows of bf16 measure its emulation")
    print(f"{'shape':6}{'precision':>10}{'diffusers':>12}{'ours':>10}{'ratio':>8}{'target':>8}")
    for name in options.shapes:
        for precision in options.precisions:
            a, b, ratio = compare(SHAPES[name], precision == "bf16", options)
            target = TARGETS.get((name, precision))
            limit = "" if target is None else f"{target:.2f}"
            print(f"{name:6}{precision:>10}{a * 1e3:>9.0f} ms{b * 1e3:>7.0f} ms{ratio:>8.2f}{limit:>8}", flush=True)


if __name__ == "__main__":
    main()
