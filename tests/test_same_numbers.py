"""One process or two, small batches or large: the same samples and the same numbers of them, by the real stages."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support.processes import start_two
from support.vision_folders import save_models
from torch import Generator, Tensor

from pipeline.components import build
from pipeline.features import judge
from pipeline.features.passes import ImageRows
from pipeline.images.reading import Images
from pipeline.latents.encoding import EncodingPlan, encode
from pipeline.measuring.image_statistics import ImageStatistics, gather_statistics
from pipeline.recipes.building import build_network, build_tokenizer
from pipeline.recipes.schema import Recipe, load
from pipeline.runs.workspace import NOTE, Workspace
from stages import evaluate, sample

ROOT = Path(__file__).parents[1]
RUNS = {"64": (64, "held_out"), "7": (7, "held_out"), "train": (7, "train")}  # images a batch, and the reference
SMALL = ["tokenizer.model.width=8", "tokenizer.model.groups=4", "tokenizer.model.middle_attention=false"]
SMALL += ["generator.network.depth=1", "generator.network.width=32", "sample.images=66", "sample.steps=2"]
SMALL += ["evaluate.images=66", "evaluate.features=[classifier,pixels,clip]"]
TWO = """
import sys
import torch
from pathlib import Path
torch.set_num_threads(1)
from test_same_numbers import go_through
go_through(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def recipe_of(place: Path, *settings: str) -> Recipe:
    return load("digits", [*SMALL, f"weights.clip_large_336={place}/models/clip", *settings])


def prepare(place: Path) -> None:
    """What the stages before sampling leave, without training."""
    torch.manual_seed(0)
    save_models(place / "models")
    recipe, run = recipe_of(place), place / "run"
    for name in ("tokenizer", "joint", "latents", "generator", "decoder"):
        (run / name).mkdir(parents=True)
        (run / name / NOTE).write_text("{}")
    tokenizer, objective = build_tokenizer(recipe), build("objectives", recipe.generator.objective)
    tokenizer.save_pretrained(run / "decoder")
    network = build_network(recipe, tokenizer.spec, 10, objective)
    for parameter in network.parameters():  # nothing stays at zero, so that steps and labels count
        torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(run / "generator" / "network")
    objective.save_pretrained(run / "generator" / "objective")
    (run / "generator" / "class_names.json").write_text(json.dumps(list("0123456789")))
    plan = EncodingPlan(recipe.latents, 0, "fp32")
    encode(tokenizer, Images(recipe.data, "train"), plan, run / "latents", Accelerator(cpu=True))


def go_through(place: Path, out: Path) -> None:
    """Sample and evaluate as `RUNS` say."""
    judge.fit = partial(judge.fit, steps=4, batch=16)
    accelerator = Accelerator(cpu=True)
    for name, (batch, reference) in RUNS.items():
        run = out / name
        if accelerator.is_main_process:
            run.mkdir(parents=True)
            for folder in (place / "run").iterdir():
                (run / folder.name).symlink_to(folder)
        accelerator.wait_for_everyone()
        settings = [f"evaluate.reference={reference}", f"evaluate.perturbed={str(batch == 64).lower()}"]
        recipe, work = recipe_of(place, f"sample.batch={batch}", *settings), Workspace(run, accelerator)
        for stage in (sample, evaluate):
            with work.publish(stage.WRITES, "0") as draft:
                stage.run(recipe, work, draft)
    seen = statistics_of(accelerator)
    if accelerator.is_main_process:
        (out / "statistics.json").write_text(json.dumps([seen.count, seen.score.value(), *totals(seen)]))


def statistics_of(accelerator: Accelerator) -> ImageStatistics:
    """Of rows that are functions of an image's number: moments and inception score, which need weights else."""

    def measure(indices: Tensor) -> ImageRows:
        rows = [torch.randn(2, 6, generator=Generator().manual_seed(int(i))) for i in indices]
        values, logits = torch.stack(rows, dim=1)
        return ImageRows(wide={"rows": values}, summed={"rows": values}, logits=logits)

    return gather_statistics(accelerator, 101, measure, torch.arange(0, 101, 3), batch=7)


def totals(seen: ImageStatistics) -> list[float]:
    moments = seen.moments["rows"]
    return [*moments.mean.tolist(), *moments.covariance.flatten().tolist(), seen.wide["rows"].sum().item()]


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """The folders that one process and two have written."""
    place = tmp_path_factory.mktemp("same")
    prepare(place)
    fit = judge.fit
    go_through(place, place / "one")
    judge.fit = fit
    (place / "two.py").write_text(TWO)
    for process in start_two(place / "two.py", place, place / "two", log=place / "log", cwd=place):
        process.finish()
    return place / "one", place / "two"


def samples(folder: Path) -> np.ndarray:
    with np.load(folder / "samples" / "samples.npz") as archive:
        assert len(archive["arr_1"]) == 66
        return archive["arr_0"].astype(int)


def numbers(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "report" / "metrics.json").read_text())


def test_samples_are_equal_to_the_bit_by_two_processes_and_within_a_level_in_other_batches(one_and_two):
    one, two = one_and_two
    for name in RUNS:
        assert (one / name / "samples/samples.npz").read_bytes() == (two / name / "samples/samples.npz").read_bytes()
        assert json.loads((two / name / "samples" / "samples.json").read_text())["processes"] == 2
    assert abs(samples(one / "64") - samples(one / "7")).max() <= 1, "of 255, where rounding falls otherwise"


@pytest.mark.parametrize("name", RUNS)
def test_every_number_is_the_same_by_two_processes(one_and_two, name):
    """To 1e-9: rows are equal to the bit, and moments are merged in float64."""
    one, two = (numbers(folder / name) for folder in one_and_two)
    kinds = {key.split("_")[0] for key in one}
    assert kinds >= {"fd", "kd", "precision", "recall", "density", "coverage", "near", "class", "psnr", "rfd", "cmmd"}
    assert set(one) == set(two) and ("pfd_clip" in one) == (name == "64")
    for key, number in one.items():
        assert two[key]["value"] == pytest.approx(number["value"], rel=1e-9, abs=1e-12), key
        assert (two[key]["held_out"] is None) == (number["held_out"] is None)
        if number["held_out"] is not None:
            assert two[key]["held_out"] == pytest.approx(number["held_out"], rel=1e-9, abs=1e-12), key


def test_numbers_of_other_batches_are_as_equal_as_the_samples(one_and_two):
    """To 1 %, or one image of the 66: samples may differ by one of 255 levels in a pixel."""
    small, large = (numbers(one_and_two[0] / name) for name in ("7", "64"))
    assert {"fd_classifier", "kd_clip", "precision_pixels", "class_accuracy", "rfd_pixels", "psnr"} <= set(small)
    for key in small:
        assert small[key]["value"] == pytest.approx(large[key]["value"], rel=0.01, abs=1 / 66), key


def test_merged_moments_and_scores_are_those_of_one_process(one_and_two):
    found = [json.loads((folder / "statistics.json").read_text()) for folder in one_and_two]
    assert found[0][0] == 101 and found[1] == pytest.approx(found[0], rel=1e-9, abs=1e-12)
