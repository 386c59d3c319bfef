"""What the check of a recipe says of its size, held to what is built."""

import pytest

from pipeline.checks.summary import print_check
from pipeline.recipes.schema import load

REPA = ["generator.losses.alignment={kind: feature_cosine, teacher: classifier, block: 2, head: {hidden: 64}}"]
REPA += ["generator.weights.feature_cosine=0.5"]


@pytest.fixture
def rows(capsys):
    def of(name: str, overrides: list[str]) -> dict[str, str]:
        print_check(load(name, overrides))
        return {line[:12].strip(): line[12:] for line in capsys.readouterr().out.splitlines()}

    return of


def test_frozen_parameters_are_told_from_trained_ones_and_need_no_gradient(rows):
    """digits_rae: a frozen classifier of 0.24 M parameters under a trained decoder."""
    found = rows("digits_rae", [])
    whole, frozen = (float(word) for word in found["tokenizer"].replace(",", " ").split() if word[0].isdigit())
    assert 0 < frozen < whole and found["tokenizer"].endswith("of them frozen")
    megabytes = float(found["memory"].split()[1])
    assert megabytes == pytest.approx(4 * frozen + 20 * (whole - frozen), rel=0.02)
    assert "frozen" not in rows("digits", [])["tokenizer"]


def test_stored_features_are_a_part_of_the_disk(rows):
    """Of every image 16 places of 8 channels, and a map of 64 channels for the places of the generator, at 2 bytes."""
    here = ["generator.network.patch_size=1", *REPA]
    plain, more = (rows("digits", [*here, *latents])["disk"] for latents in ([], ["latents.features=true"]))
    assert plain.startswith(f"latents {1438 * 16 * 8 * 2 / 1e3:.0f} kB, ")
    assert more.startswith(f"latents {1438 * 16 * (8 + 64) * 2 / 1e6:.2f} MB with features, ")
