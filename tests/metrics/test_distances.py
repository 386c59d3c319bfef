"""Distances, their running statistics and what samples are measured against: closed forms and equal ways."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from metric_inputs import extractors_of, measured, sample_inputs
from PIL import Image
from torch import Tensor

from pipeline.checks.weights import check_weights
from pipeline.commands.reference import reference as reference_command
from pipeline.features.extractors import PixelFeatures
from pipeline.features.moments import Gaussian, Moments, factor, frechet_distance
from pipeline.features.passes import ImageRows
from pipeline.features.running_score import RunningScore
from pipeline.features.statistics_file import check_reference, read_statistics, write_statistics
from pipeline.images.files import open_archive
from pipeline.images.reading import Images
from pipeline.images.stored_pixels import from_pixels
from pipeline.measuring import image_statistics
from pipeline.measuring.image_statistics import ImageStatistics, gather_statistics
from pipeline.measuring.reference import Reference, load_reference
from pipeline.measuring.samples import against_reference
from pipeline.metrics.base import Measurement
from pipeline.metrics.cmmd import cmmd
from pipeline.metrics.density_coverage import density_coverage
from pipeline.metrics.frechet_distance import FrechetDistance
from pipeline.metrics.inception_score import inception_score_chunks
from pipeline.metrics.precision_recall import PrecisionRecall
from pipeline.recipes.schema import load

ACCELERATOR = Accelerator(cpu=True)
PIXELS = PixelFeatures(4)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bytes_of(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_density_and_coverage_by_hand():
    """On a line with one neighbour: balls round 0, 1, 4 reach 1, 1, 3 and do not hold their own ends."""
    real = torch.tensor([[0.0], [1.0], [4.0]])
    density, coverage = density_coverage(torch.tensor([[0.5], [1.5], [9.0]]), real, neighbours=1)
    assert density == pytest.approx((2 + 2 + 0) / 3)  # 0.5 in the balls of 0 and 1; 1.5 in those of 1 and 4; 9 in none
    assert coverage == 1
    assert density_coverage(torch.tensor([[-1.0], [7.0]]), real, neighbours=1) == (0, 0)  # on the balls' ends
    assert density_coverage(real, real, neighbours=2)[1] == 1
    with pytest.raises(ValueError, match="5 neighbours need more than 3 rows"):
        density_coverage(real, real)


def test_density_is_one_on_average_and_coverage_as_published_for_equal_distributions():
    found = [density_coverage(normal(60, 3, seed=i), normal(60, 3, seed=100 + i)) for i in range(40)]
    density, coverage = torch.tensor(found).mean(dim=0).tolist()
    assert density == pytest.approx(1, abs=0.05)
    # expected coverage, Naeem et al., proposition 2: 1 - (m - 1)...(m - k) / ((2m - 1)...(2m - k))
    expected = 1 - math.prod((60 - i) / (120 - i) for i in range(1, 6))
    assert coverage == pytest.approx(expected, abs=0.02)
    outlier = torch.cat([normal(59, 3, seed=7), torch.full((1, 3), 50.0)])  # one wild real image gives no more credit
    assert density_coverage(outlier + 20, normal(60, 3, seed=8))[0] == 0


def test_cmmd_is_zero_for_equal_sets_and_by_hand_elsewhere():
    rows = normal(50, 8)
    assert cmmd(rows, rows) == pytest.approx(0, abs=1e-9)
    assert cmmd(rows, rows * torch.rand(50, 1)) == pytest.approx(0, abs=1e-9), "lengths do not count"
    one, other = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.2]])
    assert cmmd(one, other) == pytest.approx(1000 * (2 - 2 * math.exp(-2 / 200)))
    near, far = cmmd(rows, normal(50, 8, seed=1)), cmmd(rows, normal(50, 8, seed=1) + 1)
    assert 0 < near < far


def test_the_running_inception_score_is_that_of_the_chunks_in_any_order():
    logits, order = normal(23, 7) * 3, torch.randperm(23)
    first, second = RunningScore(size=10), RunningScore(size=10)
    for part in order[:14].split(4):
        first.update(part, logits[part])
    for part in order[14:].split(5):
        second.update(part, logits[part])
    assert first.merge(second).value() == pytest.approx(inception_score_chunks(logits, 10), rel=1e-12)
    assert RunningScore().update(torch.arange(6), torch.zeros(6, 5)).value() == pytest.approx(1)
    sure = torch.eye(5).repeat(4, 1) * 1e4
    assert RunningScore().update(torch.arange(20), sure).value() == pytest.approx(5)


def test_a_factor_is_one_for_full_and_for_singular_covariances():
    for rows in (normal(40, 6), normal(4, 6)):
        covariance = rows.T.cov()
        root = factor(covariance)
        torch.testing.assert_close(root @ root.T, covariance, rtol=1e-9, atol=1e-9)
    one, two = Moments.of(normal(4, 6)), Moments.of(normal(40, 6, seed=1))
    assert frechet_distance(one, two) == pytest.approx(frechet_distance(two, one), rel=1e-6)
    stored = Gaussian(one.mean, one.covariance)
    assert frechet_distance(stored, two) == frechet_distance(one, two)


def measure(indices: Tensor) -> ImageRows:
    rows = normal(100, 5)[indices]
    return ImageRows(
        {"label": indices % 7}, {"place": indices}, {"rows": rows, "odd": rows[indices % 2 == 1]}, 3 * rows
    )


def test_gathered_statistics_are_those_of_all_and_keep_the_chosen():
    chosen = torch.tensor([0, 3, 50, 99])
    found = gather_statistics(ACCELERATOR, 100, measure, chosen, batch=7)
    assert found.count == 100 and found.wide["place"].tolist() == chosen.tolist() == found.wide["number"].tolist()
    assert found.narrow["label"].tolist() == (torch.arange(100) % 7).tolist() and len(found.narrow) == 2
    assert found.moments["odd"].count == 50
    torch.testing.assert_close(found.moments["rows"].covariance, normal(100, 5).T.cov())
    assert found.score.value() == pytest.approx(inception_score_chunks(3 * normal(100, 5)))
    parts = []
    for indices in torch.arange(100).split(40):  # what three processes would have
        part = ImageStatistics(len(indices))
        part.moments["rows"] = Moments.of(measure(indices).summed["rows"])
        part.score.update(indices, measure(indices).logits)
        parts.append((part, [{"number": indices}], [{"place": indices[torch.isin(indices, chosen)]}]))
    joined = image_statistics.merge_statistics(parts)
    assert (
        joined.count == 100
        and joined.narrow["number"].tolist() == list(range(100))
        and joined.wide["place"].tolist() == chosen.tolist()
    )
    torch.testing.assert_close(joined.moments["rows"].covariance, found.moments["rows"].covariance)
    assert joined.score.value() == pytest.approx(found.score.value(), rel=1e-12)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_archives_are_read_as_they_lie_where_they_can_be(tmp_path, write):
    pixels = bytes_of(5)
    write(tmp_path / "a.npz", extra=np.arange(3), arr_0=pixels)
    found = open_archive(tmp_path / "a.npz")
    assert isinstance(found, np.memmap) == (write is np.savez)
    assert np.array_equal(found, pixels) and np.array_equal(found[np.array([3, 1])], pixels[[3, 1]])
    np.savez(tmp_path / "b.npz", arr_0=pixels.astype(np.float32))
    with pytest.raises(ValueError, match="arr_0 is float32"):
        open_archive(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", pixels=pixels)
    with pytest.raises(ValueError, match="holds no arr_0"):
        open_archive(tmp_path / "c.npz")


def see(images: Tensor) -> dict[str, Tensor]:
    return {PIXELS.name: PIXELS.extract(images)}


def reference_of(given: str | Path, *settings: str) -> Reference:
    asked = [f"evaluate.reference={given}", "evaluate.images=10", "evaluate.features=[pixels]", *settings]
    recipe = load("digits", asked)
    return load_reference(recipe, extractors_of([PIXELS]), ACCELERATOR)


def kept(images: Tensor) -> ImageRows:
    return ImageRows(wide=see(images), summed=see(images))


def numbers_of(samples: ImageStatistics, reference: Reference) -> dict[str, Measurement]:
    """The numbers of samples against a stated reference."""
    moments, rows = against_reference(samples, samples.wide, None, reference)
    training = samples.wide, samples.wide, samples.wide  # which is not looked at
    inputs = sample_inputs([PIXELS], *training, moments=moments, rows=rows)
    return measured(FrechetDistance(), inputs) | measured(PrecisionRecall(3), inputs)


def test_a_reference_may_be_a_split_an_archive_or_a_folder(tmp_path):
    pixels = bytes_of(30, 16)
    np.savez(tmp_path / "images.npz", arr_0=pixels)
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "folder" / f"{i:02d}.png")
    expected = Moments.of(see(from_pixels(pixels))["pixels"])
    for given in ("images.npz", "folder"):
        reference = reference_of(tmp_path / given)
        assert reference.title == f"30 images of {given}" and len(reference.rows["pixels"]) == 10
        torch.testing.assert_close(reference.moments["pixels"].covariance, expected.covariance)
    np.savez(tmp_path / "small.npz", arr_0=bytes_of(3, 8))
    with pytest.raises(ValueError, match="small.npz are 8 x 8 x 3, those of data are 16 x 16 x 3"):
        reference_of(tmp_path / "small.npz")
    digits = Images(load("digits").data, "held_out")
    reference = reference_of("held_out")
    assert reference.title == f"{len(digits)} images of the held-out split"
    whole = see(digits.plain(torch.arange(len(digits))).images)["pixels"]
    torch.testing.assert_close(reference.moments["pixels"].mean, whole.double().mean(dim=0))


def test_stored_statistics_give_the_distances_of_the_images_they_are_of(tmp_path):
    images, samples = (from_pixels(bytes_of(40, 16, seed)) for seed in (0, 1))
    moments = Moments.of(see(images)["pixels"])
    write_statistics(tmp_path / "stored.npz", {"pixels": moments}, {"images": "40", "features": PIXELS.statistics()})
    reference = reference_of(tmp_path / "stored.npz")
    assert not reference.rows and reference.title == "the statistics in stored.npz, of 40"
    of_samples = gather_statistics(ACCELERATOR, 40, lambda i: kept(samples[i]), torch.arange(40))
    found = numbers_of(of_samples, reference)
    assert set(found) == {"fd_pixels"} and found["fd_pixels"].held_out is None
    assert found["fd_pixels"].value == pytest.approx(frechet_distance(of_samples.moments["pixels"], moments), rel=1e-12)
    assert found["fd_pixels"].protocol["references"] == "the statistics in stored.npz, of 40"
    with pytest.raises(ValueError, match="have resize 'area mean to 4 x 4 where larger', the features here"):
        read_statistics(tmp_path / "stored.npz", [_other_resize()])
    with pytest.raises(ValueError, match="holds no images, and no statistics of classifier"):
        check_reference(str(tmp_path / "stored.npz"), ("classifier", "pixels"))


def _other_resize() -> PixelFeatures:
    other = PixelFeatures(4)
    other.describe = lambda: PIXELS.describe() | {"resize": "none"}
    return other


def test_statistics_as_adm_and_pytorch_fid_write_them_are_inceptions(tmp_path):
    class Wide(PixelFeatures):
        name = "inception"

        def statistics(self):
            return {"inception": self.describe(), "inception_spatial": self.describe()}

    rows = normal(60, 48)
    mu, sigma = rows.mean(dim=0).numpy(), rows.T.cov().numpy()
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, mu_s=mu + 1, sigma_s=sigma)
    found = read_statistics(tmp_path / "adm.npz", [Wide(4)])
    assert torch.equal(found["inception"].mean + 1, found["inception_spatial"].mean)
    np.savez(tmp_path / "fid.npz", mu=mu, sigma=sigma)
    assert set(read_statistics(tmp_path / "fid.npz", [Wide(4)])) == {"inception"}
    with pytest.raises(ValueError, match="statistics of inception have width 48, the features here 192"):
        read_statistics(tmp_path / "fid.npz", [Wide(8)])


def test_statistics_beside_images_are_of_their_own_images_and_of_the_published_resize(tmp_path):
    """ADM's archives hold ten thousand images, and the statistics of all of ImageNet."""
    pixels, rows = bytes_of(12, 16), normal(60, 48)
    mean, covariance = rows.mean(dim=0).numpy(), rows.T.cov().numpy()
    np.savez(tmp_path / "adm.npz", arr_0=pixels, mu_pixels=mean, sigma_pixels=covariance)
    reference = reference_of(tmp_path / "adm.npz")
    assert torch.equal(reference.moments["pixels"].mean, rows.mean(dim=0)) and len(reference.rows["pixels"]) == 10
    samples = gather_statistics(ACCELERATOR, 12, lambda i: kept(from_pixels(pixels[i])), torch.arange(10))
    found = numbers_of(samples, reference)
    assert found["fd_pixels"].protocol["references"].startswith("the statistics in adm.npz, which does not say")
    assert found["precision_pixels"].protocol["references"] == "10 of 12 images of adm.npz"
    other = reference_of(tmp_path / "adm.npz", "evaluate.resize=clean")
    torch.testing.assert_close(other.moments["pixels"].mean, see(from_pixels(pixels))["pixels"].double().mean(dim=0))
    assert not other.stored


def test_a_reference_that_is_not_there_stops_a_recipe_at_load():
    with pytest.raises(ValueError, match="evaluate.reference: there is no file or folder 'nowhere.npz'"):
        check_weights(load("digits", ["evaluate.reference=nowhere.npz"]))


def test_the_command_makes_statistics_of_a_recipes_split_and_of_a_folder(tmp_path, capsys):
    out = tmp_path / "digits.npz"
    reference_command(["digits", str(out), "evaluate.reference=held_out"])
    assert "evaluate.reference=" in capsys.readouterr().out
    with np.load(out) as archive:
        assert set(archive) == {"mu_pixels", "sigma_pixels", "protocol"}
        protocol = json.loads(str(archive["protocol"]))
    assert protocol["features"]["pixels"]["width"] == 192 and "held_out" in protocol["images"]
    digits = Images(load("digits").data, "held_out")
    rows = PixelFeatures().extract(digits.plain(torch.arange(len(digits))).images)
    stored = read_statistics(out, [PixelFeatures()])["pixels"]
    torch.testing.assert_close(stored.covariance, rows.double().T.cov())
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(bytes_of(5, 12)):
        Image.fromarray(image).save(tmp_path / "folder" / f"{i}.png")
    reference_command([str(tmp_path / "folder"), str(tmp_path / "f.npz"), "size=8", "features=[pixels]"])
    assert read_statistics(tmp_path / "f.npz", [PixelFeatures()])["pixels"].mean.shape == (192,)
    for wrong, message in [
        (["digits"], "OUT.npz"),
        (["digits", str(out), "evaluate.features=[classifier]"], "the classifier alone"),
        ([str(tmp_path / "folder"), str(out)], "size is missing"),
        ([str(tmp_path / "folder"), str(out), "size=8", "features=[classifier]"], "trained by every run"),
    ]:
        with pytest.raises(ValueError, match=message):
            reference_command(wrong)
