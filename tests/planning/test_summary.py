"""What the check of a recipe says of its size, held to what is built."""

import pytest

import run
from pipeline.planning.summary import CheckSettings, print_check
from pipeline.recipes.schema import load

REPA = ["generator.losses.alignment={kind: feature_cosine, teacher: classifier, block: 2, head: {hidden: 64}}"]
REPA += ["generator.weights.feature_cosine=0.5"]


@pytest.fixture
def rows(capsys):
    def of(name: str, overrides: list[str], **settings) -> dict[str, str]:
        print_check(load(name, overrides), CheckSettings(**settings))
        found: dict[str, str] = {}
        for line in capsys.readouterr().out.splitlines():
            found[line[:12].strip()] = "\n".join(filter(None, [found.get(line[:12].strip()), line[12:]]))
        return found

    return of


def number(text: str, before: str) -> float:
    """The number that stands before a text, in MB."""
    value, unit = text.partition(before)[0].split()[-2:]
    return float(value.strip("(")) * {"GB": 1e3, "MB": 1, "kB": 1e-3}[unit]


def test_frozen_parameters_are_told_from_trained_ones_and_need_no_gradient(rows):
    """digits_rae: a frozen classifier of 0.24 M parameters under a trained decoder, and one that judges beside it."""
    found = rows("digits_rae", [])
    whole, frozen = (float(word) for word in found["tokenizer"].replace(",", " ").split() if word[0].isdigit())
    assert 0 < frozen < whole and found["tokenizer"].endswith("of them frozen")
    least = 8 * frozen + 20 * (whole - frozen)
    held = number(found["memory"], " of weights and optimiser")
    assert least < held < least + 12, "beside the tokenizer there are a critic and a classifier, both small"
    assert "frozen" not in rows("digits", [])["tokenizer"]


def test_memory_follows_optimiser_processes_and_accumulation(rows):
    def generator(*overrides: str, **settings) -> str:
        found = rows("digits", ["tokenizer.phases.main.loop.steps=1", *overrides], **settings)["memory"]
        return next(line for line in found.splitlines() if line.startswith("generator: "))

    plain = generator()
    assert "by one process of 64 images" in plain
    held, parameters = number(plain, " of weights and optimiser"), 2.84
    assert held == pytest.approx(20 * parameters, rel=0.01)
    muon = number(generator("generator.loop.optimizer.kind=muon"), " of weights and optimiser")
    assert muon < held - 3 * parameters
    several = generator(processes=8)
    assert "by 8 processes of 8 images" in several
    assert number(several, " of weights and optimiser") == pytest.approx(24 * parameters, rel=0.01)
    small = generator(memory=0.06)
    assert "it does not fit 60 MB: set generator.loop.accumulate=" in small
    count = int(small.rpartition("=")[2])
    assert "does not fit" not in generator(f"generator.loop.accumulate={count}", memory=0.06)
    assert "does not fit" in generator(f"generator.loop.accumulate={count // 2}", memory=0.06)
    assert "with any loop.accumulate" in generator(memory=0.05)


def test_stored_features_are_a_part_of_the_disk(rows):
    """Of every image 16 places of 8 channels, and a map of 64 channels for the places of the generator, at 2 bytes."""
    here = ["generator.network.patch_size=1", *REPA]
    plain, more = (rows("digits", [*here, *latents])["disk"] for latents in ([], ["latents.features=true"]))
    assert plain.startswith(f"latents {1438 * 16 * 8 * 2 / 1e3:.0f} kB, ")
    assert more.startswith(f"latents {1438 * 16 * (8 + 64) * 2 / 1e6:.2f} MB with features, ")


def test_what_a_run_keeps_and_who_reads_images_is_named(rows):
    found = rows("digits_robust_ar", ["data.workers=3", "sample.images=100"])
    assert "pairs " in found["disk"] and f"samples up to {2 * 100 * 3 * 16 * 16 / 1e3:.0f} kB" in found["disk"]
    assert all(f"{place} " in found["disk"] for place in ("tokenizer.phases.main", "generator", "posttrain"))
    assert found["workers"] == "3 read images" and "posttrain: " in found["memory"]


def test_the_settings_of_check_are_no_settings_of_the_recipe(capsys):
    assert run.main(["check", "digits", "processes=4", "generator.loop.batch=32"]) == 0
    assert "by 4 processes of 8 images" in capsys.readouterr().out
    assert run.main(["check", "digits", "processes=0"]) == 2
    assert "processes is 0; give 1 or more" in capsys.readouterr().err
    assert run.main(["check", "digits", "processes=7"]) == 2
    assert "does not divide into 7 processes" in capsys.readouterr().err
