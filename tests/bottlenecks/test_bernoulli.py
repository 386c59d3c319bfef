"""Bits of learned probabilities: how they are drawn, what gradient they pass, and what lies beside them."""

import math

import torch
from support.small_quantizers import draws

from pipeline.bottlenecks.bernoulli import Bernoulli
from pipeline.draws import GivenDraws


def bernoulli(**changes) -> Bernoulli:
    torch.manual_seed(0)
    return Bernoulli(**({"dim": 6, "bits": 5} | changes))


def features(count: int = 6, tokens: int = 20) -> torch.Tensor:
    return torch.randn(count, tokens, 6, generator=torch.Generator().manual_seed(1))


def test_z_is_the_sum_of_the_rows_of_the_bits_that_are_set():
    bottleneck = bernoulli()
    code, _ = bottleneck(features())
    rows = [bottleneck.rows[code.ids[2, 3] > 0].sum(dim=0)]
    torch.testing.assert_close(code.z[2, 3][None], torch.stack(rows))
    assert code.ids.shape == (6, 20, 5) and torch.equal(code.ids, (bottleneck.latents(features()) > 0).long())


def test_bits_are_drawn_at_the_temperature():
    """With logits of 0.1 for all and a temperature of 0.2 a bit is set with probability sigmoid(0.5)."""
    bottleneck = bernoulli(temperature=0.2)
    with torch.no_grad():
        bottleneck.logits.weight.zero_(), bottleneck.logits.bias.fill_(0.1)
    code, terms = bottleneck(features(200, 50), draws(batch=200, places=slice(0, 200)))
    expected, count = 1 / (1 + math.exp(-0.5)), code.ids.numel()
    assert abs(code.ids.float().mean() - expected) < 4 * (expected * (1 - expected) / count) ** 0.5
    p = 1 / (1 + math.exp(-0.1))
    torch.testing.assert_close(terms["uncertainty"], torch.tensor(p * (1 - p)))


def test_the_gradient_is_that_of_the_probability():
    """dz / dl = p (1 - p) rows, whatever bit was drawn."""
    for uniform in (0.0, 1 - 2**-24):
        bottleneck, h = bernoulli(), features()
        code, _ = bottleneck(h, GivenDraws({"bits": torch.full((6, 20, 5), uniform)}))
        assert torch.equal(code.ids, torch.full_like(code.ids, int(uniform == 0)))
        code.z.sum().backward()
        p = bottleneck.latents(h).sigmoid().detach()
        expected = (p * (1 - p) * bottleneck.rows.detach().sum(dim=1)).sum(dim=(0, 1))
        torch.testing.assert_close(bottleneck.logits.bias.grad, expected)


def test_more_certain_bits_have_a_smaller_term():
    bottleneck = bernoulli()
    before = bottleneck(features())[1]["uncertainty"]
    with torch.no_grad():
        bottleneck.logits.weight.mul_(4), bottleneck.logits.bias.mul_(4)
    assert bottleneck(features())[1]["uncertainty"] < 0.7 * before


def test_a_redrawn_bit_is_its_own_or_the_other():
    bottleneck = bernoulli()
    ids = bottleneck(features())[0].ids
    assert torch.equal(bottleneck.redraw_ids(ids, 1.0, 1, draws()), ids)
    assert torch.equal(bottleneck.redraw_ids(ids, 0.0, 2, draws()), ids)
    changed = (bottleneck.redraw_ids(ids, 0.5, 2, draws()) != ids).float()
    assert abs(changed.mean() - 0.25) < 0.08
    first = torch.tensor([[1.0]] + [[0.0]] * 5)
    changed = bottleneck.redraw_ids(ids, first, 2, draws()) != ids
    assert changed[0].any() and not changed[1:].any()
