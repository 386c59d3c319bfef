"""Times the masks of dropout, which are functions of seed, step, place and name, beside PyTorch's own dropout.

    python benchmarks/dropout.py [--images 16] [--tokens 256] [--width 768] [--repeats 20] [--device cpu]

`mask` is `StepDraws.keep_mask`; `applied` that and the product with the tensor; `torch` is `functional.dropout`, whose
masks depend on how a batch is divided. The fastest of the repeats, each to the end of the device's work.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from pipeline.draws import StepDraws
from pipeline.nn.dropout import apply_dropout

RATE = 0.1


def milliseconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"images": 16, "tokens": 256, "width": 768, "repeats": 20, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, shape = torch.device(options.device), (options.tokens, options.width)
    draws = StepDraws(0, 1, slice(0, options.images), options.images, device)
    x = torch.randn(options.images, *shape, device=device)
    works = {
        "mask": lambda: draws.keep_mask("layer", shape, RATE),
        "applied": lambda: apply_dropout(x, draws.keep_mask("layer", shape, RATE), RATE),
        "torch": lambda: F.dropout(x, RATE, training=True),
    }
    for name, work in works.items():
        print(f"{name:<10}{milliseconds(work, options.repeats, device):>8.2f} ms")


if __name__ == "__main__":
    main()
