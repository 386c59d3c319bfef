"""One index for two codebooks: which rows it names, what its weights do, and scales that are trained by themselves."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.bottlenecks.scale_by_scale import ScaleByScale
from pipeline.bottlenecks.shared_index import SharedIndex
from pipeline.bottlenecks.vector_quantize import VectorQuantize
from pipeline.draws import GivenDraws, StepDraws

SIZES = {"semantic_dim": 5, "pixel_dim": 3, "vocab": 32}
NODE = {"kind": "shared_index"} | SIZES


def shared(**changes: Any) -> SharedIndex:
    torch.manual_seed(0)
    return SharedIndex(**SIZES | changes)


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, 8, generator=torch.Generator().manual_seed(1))


def apart(points: Tensor, rows: Tensor) -> Tensor:
    """Squared distances [T, K] of points to rows, both at length one."""
    return (F.normalize(points, dim=-1)[:, None] - F.normalize(rows, dim=-1)).square().sum(dim=-1)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 2.0)])
def test_the_index_is_of_the_least_weighted_sum_of_both_distances(weights):
    quantizer, h = shared(semantic_weight=weights[0], pixel_weight=weights[1]).eval(), features(4, 25)
    semantic, pixel = quantizer.codebook.split((5, 3), dim=1)
    points = h.flatten(0, 1).split((5, 3), dim=1)
    semantic_apart, pixel_apart = apart(points[0], semantic), apart(points[1], pixel)
    code, _ = quantizer(h)
    expected = (weights[0] * semantic_apart + weights[1] * pixel_apart).argmin(dim=1)
    assert torch.equal(code.ids.flatten(), expected)
    assert not torch.equal(expected, semantic_apart.argmin(dim=1))
    assert not torch.equal(expected, pixel_apart.argmin(dim=1))
    rows = torch.cat([F.normalize(half[expected], dim=-1) for half in (semantic, pixel)], dim=1)
    torch.testing.assert_close(code.z.flatten(0, 1), rows)
    torch.testing.assert_close(quantizer.lookup(code.ids), code.z)


@pytest.mark.parametrize("half", ["semantic", "pixel"])
@pytest.mark.parametrize("start", ["random", "kmeans"])
def test_without_a_weight_of_one_half_the_other_is_quantised_as_by_itself(half, start):
    """Ids, and where k-means begins them the rows too, are those of a plain quantiser of the other half."""
    channels = slice(0, 5) if half == "semantic" else slice(5, 8)
    other = "pixel" if half == "semantic" else "semantic"
    quantizer = shared(start=start, unit_norm=False, **{f"{other}_weight": 0.0}).train()
    plain = VectorQuantize(channels.stop - channels.start, 32, unit_norm=False, start=start).train()
    with torch.no_grad():
        quantizer.codebook.normal_(generator=torch.Generator().manual_seed(2))
        plain.codebook.copy_(quantizer.codebook[:, channels])
    h = features(4, 25).requires_grad_()
    draws = StepDraws(0, 0, slice(0, 4), 4)
    code, alone = quantizer(h, draws)[0], plain(h[..., channels], draws)[0]
    assert torch.equal(code.ids, alone.ids) and len(code.ids.unique()) > 16
    torch.testing.assert_close(code.z[..., channels], alone.z)
    torch.testing.assert_close(quantizer.codebook[:, channels], plain.codebook)


def test_both_codebooks_learn_from_the_tokens_that_take_a_row_whichever_half_chose_it():
    quantizer, h = shared(semantic_weight=0.0).train(), features(1, 6)
    code, terms = quantizer(h)
    terms["vq"].backward()
    taken = quantizer.codebook.grad.abs().sum(dim=1).nonzero().flatten()
    assert torch.equal(taken, code.ids.unique())
    assert (quantizer.codebook.grad[taken].split((5, 3), dim=1)[0].abs().sum(dim=1) > 0).all()


def test_near_codes_are_near_by_the_weighted_distance():
    quantizer = shared(semantic_weight=0.0).eval()
    ids = quantizer(features(1, 40))[0].ids
    redrawn = quantizer.redraw_ids(ids, 1.0, 4, StepDraws(0, 0, slice(0, 1), 1))
    pixel = F.normalize(quantizer.codebook[:, 5:], dim=-1)
    ranks = (pixel[:, None] - pixel).square().sum(dim=-1).argsort(dim=1).argsort(dim=1)
    assert (redrawn != ids).any() and ranks[ids, redrawn].max() == 3


def test_nothing_would_choose_an_id_without_any_weight():
    with pytest.raises(ValueError, match="nothing chooses an id"):
        shared(semantic_weight=0.0, pixel_weight=0.0)


def scales(drop: float = 0.0) -> ScaleByScale:
    torch.manual_seed(0)
    return ScaleByScale(NODE, [1, 2, 4], drop)


def given(share: float) -> GivenDraws:
    return GivenDraws({"dropped_scale": torch.full((2,), share)})


def test_each_scale_quantises_what_the_earlier_ones_left_and_has_a_gradient_of_its_own():
    neck, h = scales().train(), features(2, 16).requires_grad_()
    code, terms = neck(h)
    rest, losses = h.mT.unflatten(2, (4, 4)), []
    for rows, side in zip(code.z.detach().split([1, 4, 16], dim=1), neck.sides):
        points = neck.quantizer.latents(F.adaptive_avg_pool2d(rest, side).flatten(2).mT)
        losses.append((points - rows).square().mean())
        rest = rest - F.interpolate(rows.mT.unflatten(2, (side, side)), (4, 4), mode="bicubic").detach()
    torch.testing.assert_close(terms["commit"], torch.stack(losses).mean())
    merged = neck.decoder_input(code.z, h)
    torch.testing.assert_close(merged.mT.unflatten(2, (4, 4)), h.mT.unflatten(2, (4, 4)) - rest)
    for level in range(3):  # a gradient of this scale's vectors reaches h
        (reached,) = torch.autograd.grad(neck(h)[0].z.split([1, 4, 16], dim=1)[level][..., 0].sum(), h)
        assert reached.abs().sum() > 0


@pytest.mark.parametrize("share, dropped", [(0.0, 1), (0.24, 1), (0.26, 2), (0.49, 2), (0.5, None), (0.9, None)])
def test_a_scale_but_the_first_is_left_out_of_some_steps(share, dropped):
    neck, h = scales(drop=0.5).train(), features(2, 16)
    code, terms = neck(h, given(share))
    empty = [bool((z == 0).all()) for z in code.z.split([1, 4, 16], dim=1)]
    assert empty == [level == dropped for level in range(3)]
    whole, all_terms = neck(h, given(0.9))
    assert torch.equal(code.ids[:, :1], whole.ids[:, :1])
    if dropped == 1:  # the last scale quantises what the second would have
        assert not torch.equal(code.ids[:, 5:], whole.ids[:, 5:])
    assert torch.equal(terms["vq"], all_terms["vq"]) == (dropped is None)
    assert torch.equal(neck.eval()(h, given(share))[0].ids, whole.ids)


def test_one_scale_cannot_be_left_out():
    with pytest.raises(ValueError, match="leave drop out"):
        ScaleByScale(NODE, [4], drop=0.1)
