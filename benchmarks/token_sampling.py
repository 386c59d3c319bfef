"""Times autoregressive sampling against the evaluations of its network, their weight products, and transformers.

    python benchmarks/token_sampling.py [--rounds 3] [--threads 2] [--tokens 256] [--images 16] [--precision fp32]
        [--depth 12] [--width 384] [--heads 6] [--vocab 16384] [--lengths 64 256 1024]

LlamaGen's shape at 12 layers of 384: codes of 16 x 16 ids, guided, so that 16 images are 32 rows. `sampling` is the
whole of `NextToken.sample`. `evaluations` feeds the same network as many tokens, one after another, and draws none;
`products` are the products with its weights alone, in the same number. `generate` is transformers' Llama of the same
shape with a static cache, 32 rows without guidance. The methods alternate in one process; seconds are medians, and
ratios are medians of the rounds' ratios, so that other work on the machine slows all of them. At the end one longer
run: the time per step after 64, 256 and 1,024 tokens, and the growth of the process' memory. About two and a half
minutes.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.code import Condition, LatentSpec
from pipeline.draws import ImageDraws
from pipeline.networks.causal_transformer import CausalTransformer
from pipeline.objectives.next_token import NextToken
from pipeline.samplers.guidance import Guidance
from pipeline.samplers.request import SamplingRequest

CLASSES, SCALE = 1000, 2.0
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Method = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """What is sampled, by what size of network."""

    tokens: int
    images: int
    depth: int
    width: int
    heads: int
    vocab: int
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        return 2 * self.images

    def network(self, tokens: int) -> CausalTransformer:
        """Of LlamaGen's blocks; on a grid of one axis, so that any number of tokens is possible."""
        shape = {"depth": self.depth, "width": self.width, "heads": self.heads, "feed_forward_multiple": 256}
        network = CausalTransformer([tokens], self.vocab, CLASSES, position="rotary_sequence", **shape)
        nn.init.normal_(network.head.outputs[0].weight, std=0.02)
        return network.to(self.dtype).eval()


def sampling(work: Work, network: CausalTransformer) -> Method:
    spec, condition = LatentSpec((work.tokens,), 1, work.vocab), Condition(labels=torch.arange(work.images))

    def run() -> None:
        draws = ImageDraws.from_seeds(list(range(work.images)))
        NextToken().sample(SamplingRequest(network, condition, spec, draws, work.tokens, Guidance(SCALE)))

    return run


def evaluations(work: Work, network: CausalTransformer) -> Method:
    ids, condition = torch.zeros(work.rows, 1, dtype=torch.int64), Condition(labels=torch.arange(work.rows))

    def run() -> None:
        memory, last = network.begin(work.rows, condition), None
        for _ in range(work.tokens):
            last = network.advance(memory, last, lambda logits, codebook: ids)

    return run


def products(work: Work, network: CausalTransformer) -> Method:
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    inputs = {width: torch.randn(work.rows, width, dtype=work.dtype) for width in {m.in_features for m in layers}}

    def run() -> None:
        for _ in range(work.tokens):
            for layer in layers:
                layer(inputs[layer.in_features])

    return run


def generate(work: Work, network: CausalTransformer) -> Method:
    config = LlamaConfig(
        vocab_size=work.vocab,
        hidden_size=work.width,
        intermediate_size=network.blocks[0].feed_forward.down.in_features,
        num_hidden_layers=work.depth,
        num_attention_heads=work.heads,
        max_position_embeddings=work.tokens + 1,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(work.dtype).eval()
    start: Tensor = torch.arange(work.rows)[:, None]
    settings = {"do_sample": True, "top_k": 0, "cache_implementation": "static", "disable_compile": True}
    lengths = {"max_new_tokens": work.tokens, "min_new_tokens": work.tokens, "pad_token_id": 0}
    mask = torch.ones_like(start)
    return lambda: model.generate(start, attention_mask=mask, **settings, **lengths)


def compare(methods: dict[str, Method], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round; the order rotates by one from round to round."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    names = list(methods)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            methods[name]()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], name: str, to: str) -> float:
    return statistics.median(a / b for a, b in zip(times[name], times[to]))


def resident_megabytes() -> float:
    """Of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def report(name: str, value: float, least: float | None = None, most: float | None = None) -> None:
    met = (least is None or value >= least) and (most is None or value <= most)
    target = f"at least {least}" if most is None else f"at most {most}"
    print(f"{name:58}{value:8.3f}   target {target}: {'met' if met else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"rounds": 3, "threads": 2, "tokens": 256, "images": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"depth": 12, "width": 384, "heads": 6, "vocab": 16_384}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=list(TYPES), default="fp32")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024])
    options = vars(parser.parse_args())
    rounds, lengths = options.pop("rounds"), options.pop("lengths")
    torch.set_num_threads(options.pop("threads"))
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    work = Work(dtype=TYPES[options.pop("precision")], **options)
    compare_speed(work, rounds)
    measure_lengths(work, lengths)


def compare_speed(work: Work, rounds: int) -> None:
    network = work.network(work.tokens)
    methods = {
        "sampling": sampling(work, network),
        "evaluations": evaluations(work, network),
        "products": products(work, network),
        "generate": generate(work, network),
    }
    times = compare(methods, rounds)
    print(f"{work.images} images guided, {work.tokens} tokens, {work.dtype}, {torch.get_num_threads()} threads")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:16}{median:10.2f} s{1000 * median / work.tokens:10.2f} ms per step")
    report("speed of sampling, as a multiple of its evaluations'", ratio(times, "evaluations", "sampling"), least=0.9)
    report("time of the evaluations, as a multiple of the products'", ratio(times, "evaluations", "products"), most=2.3)
    report("time of sampling, as a multiple of transformers' generate", ratio(times, "sampling", "generate"), most=1.0)


def measure_lengths(work: Work, lengths: list[int]) -> None:
    """Time and memory at every token of one run of the greatest length."""
    tokens, clock, megabytes = max(lengths) + 8, [], []
    network, condition = work.network(tokens), Condition(labels=torch.arange(work.images))

    def record(step: int, u: float, ids: Tensor) -> None:
        clock.append(time.perf_counter())
        megabytes.append(resident_megabytes())

    draws, spec = ImageDraws.from_seeds(list(range(work.images))), LatentSpec((tokens,), 1, work.vocab)
    NextToken().sample(SamplingRequest(network, condition, spec, draws, tokens, Guidance(SCALE), record))
    seconds = [later - earlier for earlier, later in zip(clock, clock[1:])]
    near = {n: statistics.median(seconds[n - 8 : n + 8]) for n in lengths}
    for n, median in near.items():
        print(f"{n:6} tokens so far{1000 * median:10.2f} ms per step")
    first, last = min(lengths), max(lengths)
    report(f"time at {last} tokens, as a multiple of that at {first}", near[last] / near[first], most=last / first)
    report("megabytes of growth from the tenth token to the last", megabytes[-1] - megabytes[10], most=8)


if __name__ == "__main__":
    main()
