"""Times the training of a generator whose codes are encoded at every step, beside the same one that reads stored codes.

    python benchmarks/encoded_images.py [--recipe digits] [--steps 20] [--rounds 3]

Both trainings are the recipe's, with weights that nothing has trained, in one process of one thread and in turns; a
step is that of `pipeline.training.loop`, reading of images included, which lie in memory. The table holds images per
second of the median step of all rounds and of the fastest tenth, the speed while nothing else runs on the machine.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from pipeline.components import build
from pipeline.images.reading import Images
from pipeline.latents.code_source import CodeSource
from pipeline.latents.encoded_images import EncodedImages
from pipeline.latents.encoding import Encoder, EncodingPlan, encode
from pipeline.latents.store import LatentStore
from pipeline.recipes.building import build_network, build_tokenizer, count_condition_classes
from pipeline.recipes.schema import Recipe, load
from pipeline.training.generation import Generation
from pipeline.training.loop import TrainingRun, train

WARM_UP = 3  # steps of a training that are not timed


def step_times(recipe: Recipe, codes: CodeSource, steps: int) -> list[float]:
    """Seconds of each step of a training that begins anew."""
    part, times = recipe.generator, [time.perf_counter()]
    objective = build("objectives", part.objective)
    network = build_network(recipe, codes.spec, count_condition_classes(recipe, codes.num_classes), objective)
    task = Generation(network, objective, part.weights, encoder=codes.encoder)

    def stamp(step: int, averages: object) -> bool:
        times.append(time.perf_counter())
        return False

    with tempfile.TemporaryDirectory() as folder:
        loop = replace(part.loop, steps=steps + WARM_UP, save_every=0)
        train(task, codes, TrainingRun(loop, Path(folder), recipe.seed, Accelerator(cpu=True), 0, stamp))
    return [after - before for before, after in zip(times, times[1:])][WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits", help="one whose generator has no losses of hidden states")
    parser.add_argument("--steps", type=int, default=20, help="timed in a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load(options.recipe)
    images, plan = Images(recipe.data, "train"), EncodingPlan(recipe.latents, recipe.seed, recipe.precision.latents)
    tokenizer = build_tokenizer(recipe)
    with tempfile.TemporaryDirectory() as folder:
        encode(tokenizer, images, plan, Path(folder), Accelerator(cpu=True))
        store = LatentStore(Path(folder))
        encoded = EncodedImages(Path(folder), store.manifest, images, Encoder(tokenizer, plan, torch.device("cpu")))
        seconds: dict[str, list[float]] = {"stored codes": [], "encoded at every step": []}
        for _ in range(options.rounds):
            for name, codes in zip(seconds, (store, encoded)):
                seconds[name] += step_times(recipe, codes, options.steps)
    found = [(statistics.median(times), statistics.quantiles(times, n=10)[0]) for times in seconds.values()]
    print(f"{'images per second':<24}{'median':>12}{'fastest tenth':>16}")
    for name, each in zip(seconds, found):
        rates = [recipe.generator.loop.batch / seconds_of_step for seconds_of_step in each]
        print(f"{name:<24}{rates[0]:>12.1f}{rates[1]:>16.1f}")
    ratios = [encoded / stored for stored, encoded in zip(*found)]
    print(f"{'ratio of steps':<24}{ratios[0]:>12.2f}{ratios[1]:>16.2f}")


if __name__ == "__main__":
    main()
