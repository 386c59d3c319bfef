"""A report holds every number of its run, each with its protocol, and asks nobody else for anything."""

import json
import re
from functools import partial
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from metric_inputs import Geometry, measured, sample_inputs, tokenizer_inputs
from PIL import Image
from support.tiny_pipeline import generators, make_pipeline

from pipeline.code import LatentSpec
from pipeline.components import build
from pipeline.features import judge
from pipeline.features.extractors import PixelFeatures
from pipeline.features.moments import Moments, frechet_distance
from pipeline.features.passes import PerImage, collect_rows, evenly_spaced
from pipeline.images import grids
from pipeline.images.reading import Images
from pipeline.images.stored_pixels import from_pixels, to_pixels
from pipeline.latents.encoding import EncodingPlan, encode
from pipeline.metrics.base import Measurement
from pipeline.metrics.code_usage import CodeUsage
from pipeline.metrics.frechet_distance import FrechetDistance
from pipeline.metrics.precision_recall import PrecisionRecall
from pipeline.recipes.building import build_network, build_tokenizer
from pipeline.recipes.schema import load
from pipeline.reporting.curves import draw_curves, read_log
from pipeline.reporting.number_text import format_number
from pipeline.reporting.run_page import refresh_report
from pipeline.runs.finished import sha256_of_tokenizer
from pipeline.runs.workspace import Workspace
from pipeline.samplers.arc import arc
from pipeline.sampling.interpolation import interpolate
from stages import evaluate

SMALL = [
    "tokenizer.model.width=8",
    "tokenizer.model.groups=4",
    "tokenizer.model.middle_attention=false",
    "evaluate.images=60",
    "generator.network.depth=1",
    "generator.network.width=32",
    "sample.steps=2",
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run of 40 samples, made without training, and a judge that is trained for a moment only."""
    recipe = load("digits", SMALL)
    monkeypatch.setattr(judge, "fit", partial(judge.fit, steps=4, batch=16))
    for name in evaluate.READS + evaluate.READS_WHERE_MADE:
        (tmp_path / name).mkdir()
        (tmp_path / name / "made_from.json").write_text("{}")  # seconds and versions may be missing
    tokenizer, accelerator = build_tokenizer(recipe), Accelerator(cpu=True)
    tokenizer.save_pretrained(tmp_path / "decoder")
    plan = EncodingPlan(recipe.latents, 0, "fp32")
    encode(tokenizer, Images(recipe.data, "train"), plan, tmp_path / "latents", accelerator)
    objective = build("objectives", recipe.generator.objective)
    build_network(recipe, tokenizer.spec, 10, objective).save_pretrained(tmp_path / "generator" / "network")
    objective.save_pretrained(tmp_path / "generator" / "objective")
    (tmp_path / "generator" / "class_names.json").write_text(json.dumps(list("0123456789")))
    log = [{"step": step, "network/flow": 1 / step, "lr/network": 1e-3} for step in range(1, 9)]
    (tmp_path / "generator" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (tmp_path / "samples" / "samples.json").write_text('{"steps": 7, "guidance": {"scale": 1.5}, "seeds": "3 + i"}')
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)

    def finish(labels: np.ndarray, *settings: str) -> tuple[dict, str]:
        np.savez(tmp_path / "samples" / "samples.npz", arr_0=pixels, arr_1=labels)
        out = tmp_path / "report"
        out.mkdir()
        evaluate.run(load("digits", [*SMALL, *settings]), Workspace(tmp_path, accelerator), out)
        for name in ("reconstructions.png", "samples.png", "interpolation.png", "curves.png"):
            assert Image.open(out / name).size[0] > 100
        return json.loads((out / "metrics.json").read_text()), (out / "index.html").read_text()

    return finish


def test_every_number_has_its_protocol_and_is_on_the_page(run):
    numbers, page = run(np.arange(40) % 10)
    expected = {
        f"{kind}_{name}"
        for kind in ("fd", "kd", "precision", "recall", "density", "coverage", "rfd")
        for name in ("classifier", "pixels")
    }
    expected |= {"near_copies_classifier", "near_copies_pixels", "class_accuracy", "judge_accuracy"}
    assert set(numbers) == expected | {"psnr", "ssim", "perceptual_classifier"}
    for key, number in numbers.items():
        assert number["protocol"]["versions"]["torch"] and number["protocol"]["images"], key
        assert f'<data value="{number["value"]!r}">{format_number(number["value"], number["unit"])}</data>' in page, key
        assert number["held_out"] is None or f'<data value="{number["held_out"]!r}">' in page, key
    distance = numbers["fd_classifier"]
    assert distance["ratio"] == pytest.approx(distance["value"] / distance["held_out"])
    assert distance["protocol"]["sampling"] == {"steps": 7, "guidance": {"scale": 1.5}, "seeds": "3 + i"}
    assert len(distance["protocol"]["features"]["weights_sha256"]) == 64
    assert distance["protocol"]["images"].startswith("40 ") and distance["protocol"]["held_out"].startswith("40 ")
    assert numbers["near_copies_pixels"]["value"] == 0  # noise is no copy
    tiles = re.findall(r'<a class=tile href="#(\w+)" title="([^"]+)"', page)
    assert [key for key, _ in tiles] == [key for key, number in numbers.items() if number["headline"]]
    assert all(f"<tbody id={key}>" in page and escape(numbers[key]["protocol"]["images"]) in on for key, on in tiles)


def test_a_card_and_a_sweep_are_on_the_page_where_they_are_of_the_same(run, tmp_path):
    numbers, page = run(np.arange(40) % 10)
    assert "Tokenizer card" not in page and "Guidance sweep" not in page
    write_card(tmp_path, psnr=number("PSNR", 1.0, "Reconstructions"), cknna=number("CKNNA", 0.125, "Meaning"))
    write_sweep(tmp_path, {"generator": None, "decoder": None})
    refresh_report(tmp_path)
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.index("Guidance sweep") < page.index("Tokenizer card")
    assert '<data value="0.125">' in page and f'<data value="{numbers["psnr"]["value"]!r}">' in page
    assert page.count("<h3>Meaning") == 1 and "<h3>Reconstructions" not in page, (
        "a number of the report is not repeated"
    )
    assert '<data value="0.75">' in page and page.count("guidance 2") >= 1
    write_sweep(tmp_path, {"generator": "another", "decoder": None})
    (tmp_path / "decoder" / "config.json").write_text("{}")
    refresh_report(tmp_path)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Tokenizer card" not in page and "Guidance sweep" not in page


def number(title: str, value: float, group: str = "Samples") -> dict:
    plain = Measurement(title, value, "higher", "what it says", {"images": "40 samples"}).as_dict()
    return plain | {"group": group}


def write_card(run: Path, **numbers: dict) -> None:
    code, data = {"grid": [4, 4], "dim": 8, "vocab": 0, "codebooks": 1}, {"source": {"kind": "digits"}, "size": 16}
    about = {"tokenizer": "ConvAutoencoder", "parameters": 5, "code": code, "settings": {"data": data}}
    about["sha256"] = sha256_of_tokenizer(run / "decoder")
    (run / "card").mkdir()
    (run / "card" / "card.json").write_text(json.dumps({"about": about, "numbers": numbers}))


def write_sweep(run: Path, made_of: dict[str, str | None]) -> None:
    points = [{"values": {"guidance": g}, "numbers": {"fd_x": number("FD", g * 0.375)}} for g in (1.0, 2.0)]
    points = [point | {"sampling": {"images": 40}} for point in points]
    (run / "sweep").mkdir(exist_ok=True)
    (run / "sweep" / "sweep.json").write_text(json.dumps({"name": "x", "made_of": made_of, "points": points}))


def test_the_page_asks_nobody_for_anything(run):
    _, page = run(np.arange(40) % 10)
    assert page.count('src="data:image/png;base64,') == 4
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:|#)[^"'\s>]+""", page)
    assert not re.search(r"https?://|@import|url\(|<script|<link", page)


def test_samples_without_classes_have_no_class_accuracy(run):
    numbers, _ = run(np.full(40, -1))
    assert "class_accuracy" not in numbers and "judge_accuracy" in numbers and "fd_classifier" in numbers


def test_a_report_has_the_metrics_that_are_named_and_no_others(run):
    numbers, page = run(np.arange(40) % 10, "evaluate.metrics=[psnr,kernel_distance]")
    assert set(numbers) == {"kd_classifier", "kd_pixels", "psnr"}
    assert {number["group"] for number in numbers.values()} == {"Samples", "Reconstructions"}
    assert "Kernel distance, pixels" in page and "SSIM" not in page and "Near copies" not in page


def test_samples_are_measured_against_a_stated_reference(run, tmp_path):
    """All of them, against all of it; the rows that neighbours are looked for in are as many as evaluate.images."""
    archive = tmp_path / "reference.npz"
    pixels = np.random.default_rng(1).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    np.savez(archive, arr_0=pixels)
    numbers, page = run(np.arange(40) % 10, f"evaluate.reference={archive}", "evaluate.images=30")
    samples = np.load(tmp_path / "samples" / "samples.npz")["arr_0"]
    sets = [Moments.of(PixelFeatures().extract(from_pixels(of))) for of in (samples, pixels)]
    distance = numbers["fd_pixels"]
    assert distance["value"] == pytest.approx(frechet_distance(*sets), rel=1e-6) and distance["held_out"] is None
    assert distance["protocol"]["images"] == "40 samples"
    assert distance["protocol"]["references"] == "50 images of reference.npz"
    crowd = numbers["density_pixels"]
    assert crowd["protocol"]["images"] == "30 samples" and crowd["protocol"]["held_out"].startswith("30 ")
    assert crowd["protocol"]["references"] == "30 of 50 images of reference.npz"
    assert crowd["protocol"]["neighbours"] == 5 and "50 images of reference.npz" in page
    assert numbers["near_copies_pixels"]["protocol"]["references"] == "30 images of the training split"


def rows(*shape: int, seed: int, shift: float = 0.0) -> PerImage:
    return {"pixels": torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + shift}


def test_the_floor_is_what_new_real_images_get():
    train, held_out = rows(400, 6, seed=0), rows(100, 6, seed=1)
    same, other = (
        measured(FrechetDistance(), inputs) | measured(PrecisionRecall(3), inputs)
        for inputs in (
            sample_inputs([PixelFeatures()], rows(100, 6, seed=2, shift=shift), held_out, train) for shift in (0.0, 1.0)
        )
    )
    assert 0.5 < same["fd_pixels"].ratio < 2 < other["fd_pixels"].ratio
    assert same["fd_pixels"].held_out == other["fd_pixels"].held_out
    assert other["precision_pixels"].value < same["precision_pixels"].value
    assert same["recall_pixels"].held_out > 0.8


def test_the_use_of_a_codebook_is_counted():
    ids = torch.tensor([[0, 1], [1, 0]])
    codebook = Geometry(LatentSpec((2,), 3, 4))
    found = measured(CodeUsage(), tokenizer_inputs(codebook, {"ids": ids}, {}))
    assert found["code_usage"].value == 0.5 and found["code_perplexity"].value == pytest.approx(2)
    continuous = tokenizer_inputs(Geometry(LatentSpec((2,), 3)), {}, {})
    assert not measured(CodeUsage(), continuous), "continuous codes have no codebook"


@pytest.mark.parametrize(
    "spec, ids, usage, perplexity",
    [
        (LatentSpec((2,), 3, 4), [[0, 1], [2, 3]], {}, {}),
        (  # the first codebook is used evenly, of the second one code: the means are 0.625 and 2.5
            LatentSpec((2,), 3, 4, codebooks=2),
            [[[0, 3], [1, 3]], [[2, 3], [3, 3]]],
            {"codebook_1": 1, "codebook_2": 0.25},
            {"codebook_1": 4, "codebook_2": 1},
        ),
        (
            LatentSpec((2,), 3, 4, segments=((1,), (1,))),
            [[0, 1], [0, 2]],
            {"codebook_1": 0.25, "codebook_2": 0.5},
            {"codebook_1": 1, "codebook_2": 2},
        ),
        (
            LatentSpec((3,), 3, 4, levels=(1, 2)),
            [[0, 1, 2], [0, 3, 3]],
            {"level_1": 0.25, "level_2": 0.75},
            {"level_1": 1, "level_2": 2**1.5},
        ),
    ],
    ids=["one", "codebooks", "segments", "levels"],
)
def test_the_use_of_every_stream_of_ids_is_counted(spec, ids, usage, perplexity):
    found = measured(CodeUsage(), tokenizer_inputs(Geometry(spec), {"ids": torch.tensor(ids)}, {}))
    assert found["code_usage"].details == pytest.approx(usage)
    assert found["code_perplexity"].details == pytest.approx(perplexity)


def test_even_choices_keep_the_shares_of_classes():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[torch.randperm(100)]
    chosen = evenly_spaced(labels, 100, 20)
    assert len(set(chosen.tolist())) == 20 and labels[chosen].bincount().tolist() == [12, 6, 2]
    assert evenly_spaced(None, 10, 5).tolist() == [1, 3, 5, 7, 9] and evenly_spaced(None, 7, 7).tolist() == list(
        range(7)
    )


def test_collected_rows_keep_the_order():
    accelerator = Accelerator(cpu=True)
    found = collect_rows(accelerator, 11, lambda i: {"square": i**2, "self": i}, batch=4)
    assert found["self"].tolist() == list(range(11)) and found["square"].tolist() == [i**2 for i in range(11)]


def test_grids_hold_the_images():
    images = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8).repeat(4, 1, 1, 1)
    sheet = np.asarray(grids.reconstructions(images, images))
    tile = 8 * grids.enlargement((8, 8))
    assert sheet.shape[0] == 3 * tile + 2 * grids.GAP
    first = sheet[:tile, -tile:][:: tile // 8, :: tile // 8]
    assert np.array_equal(first, to_pixels(images)[0])
    assert (sheet[-tile:, -tile:] == 0).all()  # no difference


def test_an_arc_goes_from_one_end_to_the_other_at_equal_angles():
    first, last = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = arc(first, last, 5)
    assert torch.allclose(rows[0], first) and torch.allclose(rows[-1], last)
    unit = torch.nn.functional.normalize(rows.flatten(1), dim=1)
    cosines = (unit[1:] * unit[:-1]).sum(dim=1)
    assert torch.allclose(cosines, cosines[:1].expand(4)) and torch.allclose(arc(first, first, 3)[1], first)
    lengths = rows.flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.linspace(lengths[0], lengths[-1], 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="opposite"):
        arc(first, -first, 3)


def test_an_interpolation_ends_where_its_seeds_are():
    pipe = make_pipeline()
    rows = interpolate(pipe, [2, 0], [(5, 6), (7, 8)])
    assert rows.shape[0] == 2 and rows.shape[2:] == (3, 16, 16)
    for row, label, ends in ((rows[0], 2, (5, 6)), (rows[1], 0, (7, 8))):
        alone = pipe([label] * 2, generator=generators(*ends), output_type="pt").images
        torch.testing.assert_close(row[[0, -1]], alone, atol=1e-4, rtol=0)
        assert ((row[1:] - row[:-1]).abs().amax(dim=(1, 2, 3)) > 0).all()


def test_a_term_that_is_not_on_every_line_keeps_its_steps(tmp_path):
    (tmp_path / "log").write_text('{"step": 1, "a": 2.0}\n{"step": 3, "a": 1.0, "b": 5.0}\n')
    assert read_log(tmp_path / "log") == {"a": ([1, 3], [2.0, 1.0]), "b": ([3], [5.0])}
    assert not draw_curves({}, tmp_path / "none.png") and not (tmp_path / "none.png").exists()
