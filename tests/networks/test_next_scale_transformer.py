"""What a network of scales takes of a tokenizer, and of another network at another resolution; published sizes."""

import pytest
import torch

from pipeline.code import LatentSpec
from pipeline.components import build
from pipeline.networks.next_scale_transformer import NextScaleTransformer
from pipeline.recipes.files import CONFIGS, read
from pipeline.samplers.guidance import check_same_codes
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

BOTTLENECK = {"kind": "multi_scale", "sides": [1, 2, 4], "bottleneck": {"kind": "finite_scalar", "levels": [4, 3]}}
LEVELS = [1, 4, 9]


def tokenizer(seed: int) -> ConvAutoencoder:
    torch.manual_seed(seed)
    return ConvAutoencoder(16, BOTTLENECK, width=8, multipliers=[1, 2, 2], blocks=1, groups=4).eval()


def network(levels=LEVELS, dim: int = 2, vocab: int = 12) -> NextScaleTransformer:
    torch.manual_seed(5)
    return NextScaleTransformer([sum(levels)], levels, dim, vocab, 3, depth=2, width=16, heads=2).eval()


def test_a_network_goes_with_the_tokenizer_that_it_was_trained_with():
    made, own, other = network([1, 4, 16]), tokenizer(1), tokenizer(2)
    with pytest.raises(ValueError, match="code vectors of another tokenizer"):
        check_same_codes(own, made)
    made.take_bottleneck(own.neck)
    check_same_codes(own, made)
    check_same_codes(own, made.bfloat16())
    with pytest.raises(ValueError, match="code vectors of another tokenizer"):
        check_same_codes(other, made)
    with pytest.raises(ValueError, match=r"levels=\[1, 4, 16\], the network makes \[4, 4, 4, 9\]"):
        check_same_codes(own, NextScaleTransformer([21], [4, 4, 4, 9], 2, 12, 3, depth=1, width=8, heads=2))


@torch.no_grad()
def test_it_begins_from_a_network_of_other_levels():
    """A level has the positions of the one at its place among the others, at its own size."""
    first, larger = network(), network([1, 4, 9, 16, 36])
    for table in (first.positions, first.level_embedding.weight):
        table.normal_()
    larger.begin_from(first, resampled=["positions"])
    old, new = first.positions.split(LEVELS), larger.positions.split([1, 4, 9, 16, 36])
    torch.testing.assert_close(new[0], old[0])
    torch.testing.assert_close(new[2].mean(dim=0), old[1].mean(dim=0), atol=0.3, rtol=0)
    assert new[4].shape == (36, 16) and not new[4].isnan().any()
    assert torch.equal(larger.blocks[1].attention.qkv.weight, first.blocks[1].attention.qkv.weight)
    ids = torch.zeros(1, 66, dtype=torch.int64)
    assert larger(ids).shape == (1, 66, 1, 12)


@pytest.mark.parametrize("depth, millions", [(16, 310), (20, 600), (24, 1000), (30, 2000)])
def test_published_sizes_have_the_published_numbers_of_parameters(depth, millions):
    node = read(CONFIGS / f"networks/var_d{depth}.yaml")["generator"]["network"]
    levels = [side * side for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)]
    spec = LatentSpec((680,), 32, 4096, levels=tuple(levels))
    with torch.device("meta"):
        made = build("networks", node, grid=list(spec.grid), levels=levels, dim=32, vocab=4096, num_classes=1000)
    assert sum(p.numel() for p in made.parameters()) / 1e6 == pytest.approx(millions, rel=0.04)
