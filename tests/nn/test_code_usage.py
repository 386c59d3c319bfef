"""Counting the codes that are used: closed forms, epochs, the warning."""

import logging
import math

import pytest
import torch

from pipeline.code import LatentSpec
from pipeline.draws import StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.pixel import Pixel
from pipeline.nn.code_usage import LARGEST, CodeUsage, make_code_usage, measure_usage
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.training.reconstruction import Reconstruction

SPEC = LatentSpec((4,), 2, vocab=8)


def test_usage_and_perplexity_are_means_over_codebooks():
    assert measure_usage(torch.arange(8).view(2, 4).repeat(3, 1), SPEC) == pytest.approx((1.0, 8.0))
    assert measure_usage(torch.full((5, 4, 1), 3), SPEC) == pytest.approx((1 / 8, 1.0))
    both = torch.stack([torch.arange(8), torch.arange(8) % 2], dim=-1).view(2, 4, 2)
    assert measure_usage(both, SPEC) == pytest.approx(((1 + 2 / 8) / 2, (8 + 2) / 2))
    uneven = torch.tensor([[0, 0, 0, 1]])
    assert measure_usage(uneven, SPEC)[1] == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_segments_are_counted_each_by_itself():
    ids = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    spec = LatentSpec((4,), 2, vocab=8, segments=((1,), (3,)))
    assert measure_usage(ids, spec) == pytest.approx(((2 + 6) / 16, (2 + 6) / 2))
    assert measure_usage(ids, SPEC) == pytest.approx((1.0, 8.0))


def test_an_epoch_is_counted_as_a_whole_and_the_next_one_anew():
    usage = CodeUsage(SPEC, images=6, least=0.0)
    for low in (0, 2):
        usage.add(torch.arange(low, low + 2).repeat(2, 2))
        assert not usage.values
    usage.add(torch.zeros(2, 4, dtype=torch.int64))
    assert usage.values["code_usage"] == 0.5 and usage.values["code_perplexity"] > 3
    usage.add(torch.ones(6, 4, dtype=torch.int64))
    assert usage.values["code_usage"] == 1 / 8 and usage.values["code_perplexity"] == 1


def test_low_usage_is_warned_of_once_with_what_to_try(caplog):
    usage = CodeUsage(SPEC, images=2, least=0.5)
    usage.add(torch.arange(8).reshape(2, 4))
    assert not caplog.records
    for _ in range(3):
        usage.add(torch.zeros(2, 4, dtype=torch.int64))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "\n" not in record.getMessage()
    for remedy in ("12.5 % of the 8 codes", "kmeans", "restart", "entropy", "smaller vocab", "dim"):
        assert remedy in record.getMessage()


def test_what_has_no_ids_or_too_many_codes_is_not_counted(caplog):
    assert make_code_usage(LatentSpec((4,), 2), 10, 0.5) is None and not caplog.records
    assert make_code_usage(LatentSpec((4,), 2, vocab=2 * LARGEST), 10, 0.5) is None
    assert "not counted" in caplog.text
    assert isinstance(make_code_usage(SPEC, 10, 0.5), CodeUsage)


def test_the_training_of_a_tokenizer_logs_it():
    bits = {"kind": "product", "bottleneck": {"kind": "binary", "bits": 2, "entropy_temperature": None}, "codebooks": 2}
    tokenizer = ConvAutoencoder(image_size=16, bottleneck=bits, width=8, multipliers=[1, 2], blocks=1, groups=4)
    phase = Phase(Loop(2, {"tokenizer": 1e-3}), {"pixel": 1.0, "commit": 0.1})
    task = Reconstruction(tokenizer, phase, {"pixel": Pixel()}, None, make_code_usage(tokenizer.spec, 4, 0.0))
    for step in range(2):
        assert not task.metrics
        list(task.turns(ImageBatch(torch.randn(2, 3, 16, 16)), StepDraws(0, step, slice(0, 2), 2), step))
    assert set(task.metrics) == {"code_usage", "code_perplexity"}
    assert 0.25 <= task.metrics["code_usage"] <= 1 <= task.metrics["code_perplexity"] <= 4
