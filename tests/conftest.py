"""Options and fixtures that all tests share."""

import gc
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: two threads wait for each other more than they work

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="folder below which the cases with reference values of published implementations lie",
    )


def pytest_collection_finish():
    """What was imported stays, so that collecting garbage, as every training does at its end, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_draws_in_every_order():
    torch.manual_seed(0)
