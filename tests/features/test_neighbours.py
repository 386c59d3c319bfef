"""Nearest neighbours by products of matrices are those by differences, in blocks of any size."""

import pytest
import torch
from torch import Tensor

from pipeline.features import neighbours
from pipeline.features.moments import Moments
from pipeline.features.passes import ImageRows
from pipeline.measuring.image_statistics import gather_statistics
from pipeline.metrics import kernel_distance as kernels
from pipeline.metrics.density_coverage import density_coverage
from pipeline.metrics.kernel_distance import kernel_distance
from pipeline.metrics.precision_recall import precision_recall


def by_differences(first: Tensor, second: Tensor) -> Tensor:
    """Distances of all pairs [m, n], one at a time."""
    return torch.stack([(row.double() - second.double()).square().sum(dim=1).sqrt() for row in first])


@pytest.fixture(params=[2**27, 4000], ids=["whole", "blocks"])
def sets(request, monkeypatch) -> tuple[Tensor, Tensor]:
    """Rows far from the origin, of which some are there twice, in both sets, and nearly equal."""
    monkeypatch.setattr(neighbours, "BLOCK", request.param)
    monkeypatch.setattr(kernels, "BLOCK", request.param)
    draws = torch.Generator().manual_seed(0)
    first = torch.randn(90, 40, generator=draws) + 100
    second = torch.randn(110, 40, generator=draws) + 100.1
    second[:20], first[30:35], second[20:25] = first[:20], first[:5], second[40:45]
    second[50:55] = second[55:60] * (1 + 2**-23)
    return first, second


def test_distances_to_the_nearest_are_exact(sets):
    first, second = sets
    everything = by_differences(first, second)
    torch.testing.assert_close(
        neighbours.nearest(first, second, 3), everything.sort(dim=1).values[:, :3], rtol=1e-14, atol=0
    )
    assert (neighbours.nearest(first, second, 1)[:20] == 0).all(), "equal rows are 0 apart"
    own = by_differences(second, second).sort(dim=1).values
    torch.testing.assert_close(neighbours.radii(second, 5), own[:, 5], rtol=1e-14, atol=0)
    with pytest.raises(ValueError, match="9 neighbours need more than 9 rows"):
        neighbours.radii(first[:9], 9)


@pytest.mark.parametrize("rim", [True, False])
def test_a_row_on_the_rim_is_decided_by_its_distance(sets, rim):
    """Half of the rows lie exactly on the rim of a ball: each set's own radii are distances of its rows."""
    _, second = sets
    reach = neighbours.radii(second, 4)
    rows = torch.arange(len(second))
    distances = torch.stack([neighbours.exact(second, second, rows * 0 + row, rows) for row in rows])
    expected = distances <= reach if rim else distances < reach
    assert (distances == reach).any() and torch.equal(
        torch.cat(list(neighbours.inside(second, second, reach, rim))), expected
    )


def test_metrics_of_pairs_are_their_formulas(sets):
    first, second = sets
    reach = by_differences(second, second).sort(dim=1).values
    apart, own = by_differences(first, second), by_differences(first, first).sort(dim=1).values
    precision = (apart <= reach[:, 3] * (1 + 1e-15)).any(dim=1).double().mean().item()
    recall = (own[:, 3] * (1 + 1e-15) >= apart.T).any(dim=1).double().mean().item()
    assert precision_recall(first, second, 3) == pytest.approx((precision, recall))
    density, coverage = (apart < reach[:, 5]).sum().item() / 5 / 90, (apart.amin(dim=0) < reach[:, 5]).double().mean()
    assert density_coverage(first, second) == pytest.approx((density, coverage.item()))
    one, other = (rows.double() for rows in sets)
    within = [(rows @ rows.T / 40 + 1) ** 3 for rows in (one, other)]
    expected = (
        sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in within)
        - 2 * ((one @ other.T / 40 + 1) ** 3).mean()
    )
    assert kernel_distance(first, second) == pytest.approx(expected.item(), rel=1e-6)


def test_what_a_pass_keeps_does_not_grow_with_wide_rows():
    """Of 3,000 images of 400 numbers the moments and 30 rows are kept, and of each image one number."""
    from accelerate import Accelerator

    rows = torch.randn(3000, 400, generator=torch.Generator().manual_seed(0)) + 3

    def measure(indices: Tensor) -> ImageRows:
        return ImageRows({"label": indices % 3}, {"near": rows[indices]}, {"feature": rows[indices]})

    found = gather_statistics(Accelerator(cpu=True), 3000, measure, torch.arange(0, 3000, 100))
    kept = sum(values.numel() for values in (*found.narrow.values(), *found.wide.values()))
    assert kept == 2 * 3000 + 30 * 401 and found.moments["feature"].count == 3000
    whole = Moments.of(rows)
    torch.testing.assert_close(found.moments["feature"].covariance, whole.covariance, rtol=1e-10, atol=1e-12)
