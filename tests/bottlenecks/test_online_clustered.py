"""A codebook whose unused rows follow the latents."""

import torch
from support.small_quantizers import CLUSTERED, build, draws, features


def test_rows_that_are_not_used_move_to_the_nearest_latent_and_used_ones_stay():
    quantizer = build(CLUSTERED)
    before = quantizer.codebook.detach().clone()
    quantizer.usage.fill_(1.0)
    quantizer.usage[:3] = 0.0
    far = torch.randn(6, 20, 4, generator=torch.Generator().manual_seed(4)) + 100
    quantizer(far.requires_grad_(), draws())
    with torch.no_grad():
        nearest = far.detach().flatten(0, 1)[torch.cdist(before, far.detach().flatten(0, 1)).argmin(dim=1)]
    used = quantizer.usage > 0.05
    torch.testing.assert_close(quantizer.codebook[used].detach(), before[used])
    unused = (quantizer.usage == 0).nonzero()[:, 0]
    assert len(unused)
    torch.testing.assert_close(quantizer.codebook[unused].detach(), nearest[unused], atol=0.2, rtol=0)


def test_usage_is_the_running_share_of_the_latents():
    quantizer = build(CLUSTERED)
    code, _ = quantizer(features(quantizer), draws())
    shares = torch.bincount(code.ids.flatten(), minlength=quantizer.vocab) / code.ids.numel()
    torch.testing.assert_close(quantizer.usage, 0.1 * shares)


def test_more_rows_come_into_use():
    torch.manual_seed(0)
    quantizer = build(CLUSTERED | {"vocab": 64})
    quantizer.codebook.data.normal_(std=0.01).add_(5.0)  # far from all latents
    used = []
    for step in range(30):
        code, _ = quantizer(features(quantizer, seed=step), draws(step))
        used.append(len(code.ids.unique()))
    assert used[0] < 8 and used[-1] > 2 * 8


def test_a_batch_in_parts_moves_the_rows_alike():
    whole, parts = build(CLUSTERED), build(CLUSTERED)
    h = features(whole).detach()
    whole(h.clone().requires_grad_(), draws())
    for places in (slice(0, 2), slice(2, 6)):
        parts(h[places].clone().requires_grad_(), draws(places=places))
    torch.testing.assert_close(parts.codebook, whole.codebook)
    torch.testing.assert_close(parts.usage, whole.usage)


def test_a_batch_that_is_not_finite_changes_nothing():
    quantizer = build(CLUSTERED)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer((features(quantizer).detach() * float("nan")).requires_grad_(), draws())
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())
