"""GigaTok's generators imported: any number of tokens in a row, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.published.gigatok_gpt import convert

GOLDEN = Path(__file__).parents[1] / "golden" / "gigatok_gpt" / "state.safetensors"


def test_the_number_of_tokens_is_that_of_the_positions():
    state = load_file(GOLDEN)
    state["positional_embedding"] = torch.randn(13, 32)
    network = convert(state, heads=4)["network"]
    assert network.config.grid == [12] and network.positions.shape == (13, 32) and network.cosines is None
    assert network(torch.zeros(2, 12, dtype=torch.int64)).shape == (2, 12, 1, 24)


def test_a_rotary_generator_is_refused_in_a_line():
    state = load_file(GOLDEN)
    del state["positional_embedding"]
    with pytest.raises(ValueError, match="not a GigaTok generator checkpoint: it has no positional_embedding"):
        convert(state, heads=4)
