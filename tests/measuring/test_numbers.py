"""A number that cannot be computed is left out with its reason, and the others are as they would be without it."""

import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from metric_inputs import sample_inputs

from pipeline.features.extractors import PixelFeatures
from pipeline.features.passes import evenly_spaced
from pipeline.measuring.numbers import describe_left_out, measure_metric
from pipeline.metrics.base import HELD_OUT, Measurements, Metric, Quantity
from pipeline.metrics.frechet_distance import FrechetDistance
from pipeline.metrics.kernel_distance import KernelDistance
from pipeline.metrics.near_copies import NearCopies
from pipeline.metrics.precision_recall import PrecisionRecall


class Given(Metric):
    """Of the values that it is made with, or an error in their place."""

    quantities = (Quantity("{}", "{}", "lower", "a value"),)

    def __init__(self, values: dict[str, float] | Exception):
        self.values = values

    def measure(self, inputs: object) -> Measurements:
        if isinstance(self.values, Exception):
            raise self.values
        for key, value in self.values.items():
            floors = {"held_out": value * math.inf, "ratio": 1.0, "details": {"nan": math.nan, "half": 0.5}}
            yield self.quantities[0].measurement(value, {}, key, **floors)


INPUTS = SimpleNamespace(images={"samples": 9, HELD_OUT: 9})


@pytest.mark.parametrize("error", [ValueError("two\n lines"), ZeroDivisionError("two lines")])
def test_a_metric_that_fails_is_left_out_by_name(error):
    left_out = {}
    assert measure_metric(Given(error), INPUTS, left_out) == {}
    assert describe_left_out(left_out) == ["test_numbers: two lines"]


def test_other_errors_are_no_missing_numbers():
    with pytest.raises(KeyError):
        measure_metric(Given(KeyError("rows")), INPUTS, {})


def test_what_is_not_finite_is_left_out_of_a_measurement_and_of_all():
    left_out = {}
    numbers = measure_metric(Given({"good": 1.0, "bad": math.nan, "worse": -math.inf}), INPUTS, left_out)
    assert list(numbers) == ["good"] and left_out == {"bad": "it is nan", "worse": "it is -inf"}
    good = numbers["good"]
    assert (good.held_out, good.ratio, good.details) == (None, 1.0, {"half": 0.5})


def rows(count: int) -> dict[str, torch.Tensor]:
    values = torch.rand(count, 4, generator=torch.Generator().manual_seed(count))
    return {name: values for name in ("pixels", "near_pixels")} if count else {}


def metrics() -> Iterator[tuple[Metric, int]]:
    yield from ((FrechetDistance(), 2), (KernelDistance(), 2), (PrecisionRecall(3), 4))


@pytest.mark.parametrize("metric, fewest", list(metrics()), ids=lambda one: type(one).__name__)
def test_a_metric_states_the_fewest_images_that_it_has_numbers_of(metric, fewest):
    for count in range(1, fewest + 1):
        inputs, left_out = sample_inputs([PixelFeatures()], rows(count), rows(count), rows(9)), {}
        numbers = measure_metric(metric, inputs, left_out)
        assert bool(numbers) == (count == fewest) != bool(left_out)
        assert all(math.isfinite(number.value) for number in numbers.values())
    with_floor = measure_metric(metric, sample_inputs([PixelFeatures()], rows(9), rows(9), rows(9)), {})
    without = measure_metric(metric, sample_inputs([PixelFeatures()], rows(9), {}, rows(9)), {})
    assert [number.value for number in with_floor.values()] == [number.value for number in without.values()]
    assert all(number.held_out is None for number in without.values())


def test_copies_are_told_by_held_out_images_alone():
    left_out = {}
    assert measure_metric(NearCopies(), sample_inputs([PixelFeatures()], rows(9), {}, rows(9)), left_out) == {}
    assert left_out == {"near_copies": "it needs 2 held-out images or more, and there are 0"}
    assert evenly_spaced(None, 0, 0).tolist() == []
