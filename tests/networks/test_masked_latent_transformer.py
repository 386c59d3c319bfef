"""The transformer of masked continuous tokens: its published sizes, and sizes that do not fit."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pipeline.code import Condition
from pipeline.components import Arguments, build
from pipeline.networks.masked_latent_transformer import MaskedLatentTransformer

ROOT = Path(__file__).parents[2]
SIZE = {"dim": 3, "num_classes": 5, "depth": 1, "width": 16, "heads": 2, "head_depth": 1, "head_width": 8, "buffer": 2}
PUBLISHED = {"mar_b": 208e6, "mar_l": 479e6, "mar_h": 943e6}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    node = OmegaConf.to_container(OmegaConf.load(ROOT / f"configs/networks/{name}.yaml"))["generator"]["network"]
    with torch.device("meta"):
        model = build("networks", node, grid=[16, 16], dim=16, num_classes=1000, outputs=2)
    assert abs(sum(p.numel() for p in model.parameters()) / PUBLISHED[name] - 1) < 0.005


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"heads": 3}, "width 16 is not divisible by heads 3"),
        ({"decoder_width": 20, "decoder_heads": 3}, "decoder_width 20 is not divisible by decoder_heads 3"),
        ({"grid": [2, 2, 2]}, "grids of one or two axes"),
        ({"patch_size": 3}, "patch_size 3 does not divide the grid"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(arguments, message):
    arguments = SIZE | {"grid": [4, 4]} | arguments
    complete = Arguments.complete(MaskedLatentTransformer, arguments)
    for attempt in (lambda: MaskedLatentTransformer.validate(complete), lambda: MaskedLatentTransformer(**arguments)):
        with pytest.raises(ValueError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_tokens_of_another_grid_and_unknown_labels_are_refused():
    model, known = (
        MaskedLatentTransformer(grid=[4, 4], **SIZE | {"num_classes": 0}),
        torch.zeros(1, 1, dtype=torch.int64),
    )
    with pytest.raises(ValueError, match=r"12 tokens do not fit .* grid \[4, 4\]"):
        model.states(torch.zeros(1, 12, 3), known)
    with pytest.raises(ValueError, match="without classes"):
        model.states(torch.zeros(1, 16, 3), known, Condition(labels=torch.tensor([0])))


def test_all_or_no_tokens_may_be_known():
    model, tokens = MaskedLatentTransformer(grid=[2, 2], **SIZE).eval(), torch.randn(2, 4, 3)
    for count in (0, 4):
        known = torch.arange(count).expand(2, -1)
        assert model.states(tokens, known).isfinite().all()
