"""Measures what `loop.checkpointing` saves and costs: what a training step keeps of its forward pass, and its time.

    python benchmarks/checkpointing.py [--shapes S/2 S/1 autoencoder] [--threads 1] [--repeats 3] [--batch 4]

`S/2` and `S/1` are DiT-S on latents of 16 x 16 (64 and 256 tokens), `autoencoder` the shape of SD's at 64 pixels with
32 channels in place of 128. Kept are the tensors that autograd saves between forward and backward pass, each storage
once, without weights. With checkpointing the tensors of the one block that is computed again at the time come to it,
which are not counted: of twelve blocks, a twelfth of what is kept without. Steps with and without alternate, and the
ratio of times is of their medians.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

PATCHES = {"S/2": 2, "S/1": 1}


class KeptMemory:
    """Bytes of what autograd keeps now, and the most that it kept."""

    def __init__(self, module: nn.Module):
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        self.counts: dict[int, int] = {}
        self.now, self.most = 0, 0

    def pack(self, tensor: Tensor) -> "Held":
        return Held(self, tensor)


class Held:
    """A saved tensor, counted as long as it is held."""

    def __init__(self, memory: KeptMemory, tensor: Tensor):
        self.memory, self.tensor, self.key = memory, tensor, tensor.untyped_storage().data_ptr()
        if self.key not in memory.weights:
            memory.counts[self.key] = memory.counts.get(self.key, 0) + 1
            if memory.counts[self.key] == 1:
                memory.now += tensor.untyped_storage().nbytes()
                memory.most = max(memory.most, memory.now)

    def __del__(self) -> None:
        counts = self.memory.counts
        if self.key in counts:
            counts[self.key] -= 1
            if not counts[self.key]:
                del counts[self.key]
                self.memory.now -= self.tensor.untyped_storage().nbytes()


def model_and_inputs(shape: str, batch: int) -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    if shape == "autoencoder":
        sizes = {"width": 32, "multipliers": [1, 2, 4, 4], "blocks": 2}
        return ConvAutoencoder(64, {"kind": "gaussian", "dim": 4}, **sizes), (torch.randn(batch, 3, 64, 64),)
    network = DiffusionTransformer([16, 16], 4, 1000, depth=12, width=384, heads=6, patch_size=PATCHES[shape])
    return network, (torch.randn(batch, 256, 4), torch.rand(batch), Condition(torch.randint(1000, (batch,))))


def step(model: nn.Module, inputs: tuple) -> None:
    output = model(*inputs)
    output = output if isinstance(output, Tensor) else output.images
    output.square().mean().backward()
    model.zero_grad()


def measure(shape: str, options: argparse.Namespace) -> str:
    model, inputs = model_and_inputs(shape, options.batch)
    switches = {False: model.disable_gradient_checkpointing, True: model.enable_gradient_checkpointing}
    times: dict[bool, list[float]] = {False: [], True: []}
    kept = {}
    for checkpointing in [False, True] * (options.repeats + 1):
        switches[checkpointing]()
        start = time.perf_counter()
        step(model, inputs)
        times[checkpointing].append(time.perf_counter() - start)
    for checkpointing, switch in switches.items():
        switch()
        memory = KeptMemory(model)
        with torch.autograd.graph.saved_tensors_hooks(memory.pack, lambda held: held.tensor):
            step(model, inputs)
        kept[checkpointing] = memory.most / 2**20
    without, with_it = (statistics.median(each[1:]) for each in times.values())
    return (
        f"{shape:<12}{kept[False]:>10.0f}{kept[True]:>10.0f}{kept[True] / kept[False]:>8.2f}{with_it / without:>8.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=[*PATCHES, "autoencoder"], default=[*PATCHES, "autoencoder"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'shape':<12}{'kept MB':>10}{'with':>10}{'ratio':>8}{'time':>8}   batches of {options.batch}")
    for shape in options.shapes:
        print(measure(shape, options), flush=True)


if __name__ == "__main__":
    main()
