"""Casting our models warns of modules to keep in float32 where there are some, and else says nothing."""

import logging

import pytest
import torch
from support.tiny_pipeline import make_network, make_tokenizer

from pipeline.nn.cast_warning import LOGGER


@pytest.fixture
def heard():
    """What diffusers' models say."""
    messages: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    LOGGER.addHandler(ear := Ear())
    yield messages
    LOGGER.removeHandler(ear)


@pytest.mark.parametrize("make", [make_network, make_tokenizer])
def test_a_model_without_exceptions_is_cast_in_silence(make, heard):
    model = make()
    assert model.to(torch.bfloat16) is model and model.to("cpu", dtype=torch.float64) is model.to("cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64} and not heard


def test_a_model_with_exceptions_is_warned(heard, monkeypatch):
    model, filters = make_network(), list(LOGGER.filters)
    monkeypatch.setattr(type(model), "_keep_in_fp32_modules", ["norm"])
    model.to(torch.bfloat16)
    assert "kept in float32: ['norm']" in heard[0] and LOGGER.filters == filters
