"""The numbers of an evaluation, against closed forms and cases whose answer is plain."""

import math

import pytest
import torch
from scipy.linalg import sqrtm
from torch import Generator, Tensor

from pipeline.features.choice import KINDS
from pipeline.features.extractors import PixelFeatures
from pipeline.features.moments import Moments, frechet_distance
from pipeline.images.eight_bits import levels
from pipeline.images.stored_pixels import as_saved, from_pixels, to_pixels
from pipeline.metrics.inception_score import inception_score
from pipeline.metrics.kernel_distance import kernel_distance
from pipeline.metrics.near_copies import near_copies, nearest_two
from pipeline.metrics.precision_recall import precision_recall
from pipeline.metrics.psnr import psnr
from pipeline.metrics.ssim import ssim
from pipeline.nn.resize import resize_tensorflow1
from pipeline.nn.structural_similarity import gaussian


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def given(mean: Tensor, covariance: Tensor, count: int = 100) -> Moments:
    moments = Moments(len(mean))
    moments.count, moments.mean, moments.scatter = count, mean, covariance * (count - 1)
    return moments


def test_frechet_of_two_known_gaussians():
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    first, second = torch.tensor([0.5, 1.0, 2.0]).double(), torch.tensor([1.5, 1.0, 0.25]).double()
    apart = torch.tensor([1.0, -2.0, 0.5]).double()
    distance = frechet_distance(given(torch.zeros_like(apart), first.diag() ** 2), given(apart, second.diag() ** 2))
    assert distance == pytest.approx((apart.square().sum() + (first - second).square().sum()).item(), abs=1e-12)


def test_frechet_is_the_published_formula_and_symmetric():
    a, b = Moments.of(normal(60, 5) @ normal(5, 5, seed=1)), Moments.of(normal(50, 5, seed=2) + 0.3)
    root = torch.from_numpy(sqrtm((a.covariance @ b.covariance).numpy()).real)
    plain = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance - 2 * root).trace()
    assert frechet_distance(a, b) == pytest.approx(plain.item(), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_merged_moments_are_those_of_the_whole():
    rows = normal(101, 7) * 3 + 1e4  # far from zero, where naive sums of squares lose digits
    whole, parts = Moments.of(rows), Moments(7)
    for part in rows.split([40, 1, 0, 60]):
        parts.merge(Moments.of(part))
    batches = Moments(7)
    for part in rows.split(13):
        batches.update(part)
    for moments in (parts, batches):
        assert moments.count == 101
        torch.testing.assert_close(moments.mean, rows.mean(dim=0), rtol=1e-12, atol=0)
        torch.testing.assert_close(moments.covariance, rows.T.cov(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(moments.covariance, whole.covariance, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="two rows"):
        Moments.of(rows[:1]).covariance  # noqa: B018


def test_kernel_distance_is_zero_on_average_and_grows():
    draws = [kernel_distance(normal(40, 8, seed=i), normal(40, 8, seed=1000 + i)) for i in range(60)]
    mean, spread = sum(draws) / 60, torch.tensor(draws).std().item()
    assert abs(mean) < 3 * spread / math.sqrt(60) and min(draws) < 0 < max(draws)
    biased = [kernel_distance(normal(40, 8, seed=i), normal(40, 8, seed=1000 + i), unbiased=False) for i in range(5)]
    assert min(biased) > 0
    assert kernel_distance(normal(40, 8), normal(40, 8, seed=1) + 1) > 10 * spread


def test_kernel_distance_of_sets_of_different_sizes():
    """By hand, with D = 1: k(x, y) = (xy + 1)^3."""
    first, second = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0], [-1.0]])
    cross = (1 + 8 + 0 + 1 + 27 - 1) / 6
    assert kernel_distance(first, second) == pytest.approx(27 + (1 + 1 + 0) / 3 - 2 * cross)


def test_precision_and_recall_of_plain_cases():
    real = normal(50, 4)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real + 100, real) == (0, 0)
    precision, recall = precision_recall(real[:1].repeat(50, 1), real)  # one good image over and over
    assert precision == 1 and recall == 1 / 50
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # second neighbours at 3, 2, 3, 6
    assert precision_recall(torch.tensor([[-2.5], [-3.5], [12.5]]), line, 2)[0] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="neighbours"):
        precision_recall(real, real[:3], neighbours=3)


def test_inception_score_of_certain_and_of_unsure_logits():
    certain = torch.eye(5).repeat(4, 1) * 1e4
    assert inception_score(certain, splits=4) == (pytest.approx(5), pytest.approx(0, abs=1e-9))
    assert inception_score(torch.zeros(20, 5), splits=2)[0] == pytest.approx(1)


def test_psnr_closed_form():
    images = torch.zeros(2, 3, 4, 4)
    off = images.clone()
    off[0] += 5.0
    first, second = psnr(images, off).tolist()
    assert first == pytest.approx(20 * math.log10(255 / 5)) and second == math.inf


def test_eight_bits_are_what_files_hold():
    assert levels(torch.tensor([-1.2, -1, 0.001, 1, 3])).tolist() == [0, 0, 128, 255, 255]
    images = normal(2, 3, 5, 4)
    again = from_pixels(to_pixels(images))
    assert torch.equal(again, as_saved(images)) and torch.equal(as_saved(again), again)
    inside = images.clamp(-1, 1)
    assert 0 < (again - inside).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("size", [3, 8, 10, 11, 24])
def test_ssim_of_an_image_with_itself_is_one_and_falls_with_noise(size):
    images = (normal(2, 3, size, size) * 60 + 128).clamp(0, 255)
    torch.testing.assert_close(ssim(images, images), torch.ones(2).double())
    little, much = (ssim(images, images + scale * normal(2, 3, size, size, seed=1)) for scale in (10, 60))
    assert (much < little).all() and (little < 1).all()


def test_ssim_of_small_images_uses_the_largest_odd_window():
    a, b = (normal(1, 3, 8, 9, seed=i) * 40 + 100 for i in range(2))
    assert torch.equal(ssim(a, b), ssim(a, b, window=7)) and not torch.equal(ssim(a, b), ssim(a, b, window=5))


def test_ssim_in_one_window_is_the_formula():
    a, b = (normal(1, 1, 11, 11, seed=i) * 40 + 100 for i in range(2))
    weights = torch.outer(gaussian(11, 1.5), gaussian(11, 1.5))
    m, n = (weights * a).sum(), (weights * b).sum()
    v, w, c = (weights * (a - m) ** 2).sum(), (weights * (b - n) ** 2).sum(), (weights * (a - m) * (b - n)).sum()
    expected = (2 * m * n + 2.55**2) * (2 * c + 7.65**2) / ((m**2 + n**2 + 2.55**2) * (v + w + 7.65**2))
    assert ssim(a, b).item() == pytest.approx(expected.item(), rel=1e-9)


def test_planted_copies_are_found():
    train, held_out = normal(300, 12), normal(200, 12, seed=1)
    fresh = normal(90, 12, seed=2)
    assert near_copies(fresh, held_out, train).share == near_copies(fresh, held_out, train).share_held_out == 0
    found = near_copies(torch.cat([fresh, train[:10] + 0.1 * normal(10, 12, seed=3)]), held_out, train)
    assert found.share == pytest.approx(0.1) and found.share_held_out == 0
    assert 0.1 <= found.closer < 0.2 and found.median > 0.5 * found.median_held_out
    assert near_copies(train[:20], held_out, train).share == 1
    with pytest.raises(ValueError, match="two training images"):
        near_copies(fresh, held_out, train[:1])


def test_typical_images_are_no_copies():
    """An average of neighbours is nearer to the training images than any new image, and copies none of them."""
    train, held_out = normal(300, 12), normal(200, 12, seed=1)
    found = near_copies(0.05 * normal(50, 12, seed=2), held_out, train)
    assert found.closer > 0 and found.share == 0 and found.median < found.median_held_out


def test_nearest_two_are_root_mean_squares():
    assert nearest_two(torch.zeros(1, 4), torch.tensor([[3.0] * 4, [-2.0] * 4, [9.0] * 4])).tolist() == [[2, 3]]


def test_resize_keeps_an_image_of_the_same_size_and_repeats_the_border():
    images = torch.arange(12.0).view(1, 1, 3, 4)
    assert torch.equal(resize_tensorflow1(images, 3, 4), images)
    assert resize_tensorflow1(images, 3, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]


def test_pixel_features_average_areas_and_leave_small_images():
    images = torch.arange(16.0).view(1, 1, 4, 4).repeat(1, 3, 1, 1)
    assert PixelFeatures(2).extract(images).view(3, 4)[0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(PixelFeatures(8).extract(images), images.flatten(1))
    assert set(KINDS) == {"classifier", "pixels", "inception", "dinov2", "clip", "siglip"}
