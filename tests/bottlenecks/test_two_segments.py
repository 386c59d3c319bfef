"""A row in two segments: each token by its own codebook, terms that are sums, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.bottlenecks.two_segments import TwoSegments
from pipeline.code import LatentSpec
from pipeline.draws import StepDraws

FIRST = {"kind": "vector_quantize", "dim": 6, "vocab": 12, "entropy_temperature": 0.1}
SECOND = {"kind": "vector_quantize", "dim": 4, "vocab": 12}


def neck(first=FIRST, second=SECOND, tokens: int = 3) -> TwoSegments:
    torch.manual_seed(1)
    return TwoSegments(first, second, tokens)


def test_each_segment_is_what_its_own_quantiser_makes_of_it():
    made, h = neck(), torch.randn(2, 8, 6)
    code, terms = made(h)
    parts = [part(half) for part, half in zip(made.parts, (h[:, :3], h[:, 3:, :4]))]
    assert torch.equal(code.ids, torch.cat([own.ids for own, _ in parts], dim=1))
    assert torch.equal(code.z, torch.cat([parts[0][0].z, F.pad(parts[1][0].z, (0, 2))], dim=1))
    assert terms["vq"] == parts[0][1]["vq"] + parts[1][1]["vq"]
    assert terms["entropy"] == parts[0][1]["entropy"]
    assert made.spec((8,)) == LatentSpec((8,), 6, 12, segments=((3,), (5,)))


def test_an_id_means_one_vector_in_one_segment_and_another_in_the_other():
    made = neck()
    z = made.lookup(torch.full((1, 5), 7))
    assert torch.equal(z[0, 0], z[0, 2]) and torch.equal(z[0, 3], z[0, 4])
    assert not torch.allclose(z[0, 0, :4], z[0, 3, :4]) and not z[0, 3:, 4:].any()


def test_neighbours_are_of_a_tokens_own_codebook():
    made, ids = neck(), torch.randint(12, (64, 8))
    redrawn = made.redraw_ids(ids, 1.0, 2, StepDraws(0, 0, slice(0, 64), 64))
    assert ((redrawn != ids).float().mean() - 0.5).abs() < 0.1
    for part, span in zip(made.parts, (slice(0, 3), slice(3, 8))):
        rows = part.rows()
        apart = torch.cdist(rows, rows).fill_diagonal_(torch.inf)
        changed = (redrawn != ids)[:, span]
        assert torch.equal(redrawn[:, span][changed], apart.argmin(dim=1)[ids[:, span][changed]])


def test_what_makes_no_row_of_two_segments_is_refused():
    with pytest.raises(ValueError, match="1 x 12 and 1 x 16 codes"):
        neck(second=SECOND | {"vocab": 16})
    with pytest.raises(ValueError, match="gaussian does not make"):
        neck(first={"kind": "gaussian", "dim": 4})
    for grid in ((4, 4), (3,)):
        with pytest.raises(ValueError, match="rows of more than first_tokens, 3"):
            neck().spec(grid)
    with pytest.raises(ValueError, match="no row of 3 tokens"):
        neck()(torch.zeros(1, 3, 6))
    with pytest.raises(ValueError, match="segments on grids"):
        LatentSpec((5,), 2, 4, segments=((2,), (2, 2)))
