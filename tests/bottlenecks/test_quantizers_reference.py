"""Quantisers against vector-quantize-pytorch, where the definitions agree."""

import pytest
import torch
import vector_quantize_pytorch as reference
from support.small_quantizers import BITS, GRID, NODES, UNIT, build, draws, features
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from pipeline.nn.straight_through import rotation_trick, straight_through


@pytest.mark.parametrize("unit_norm", [True, False])
def test_the_nearest_row_is_the_reference_s_and_the_first_on_ties(unit_norm):
    ours = build(UNIT, unit_norm=unit_norm, vocab=50).eval()
    theirs = reference.VectorQuantize(dim=4, codebook_size=50, use_cosine_sim=unit_norm).eval()
    theirs._codebook.embed.data.copy_(ours.rows()[None])
    h = features(ours).detach()
    z, ids, _ = theirs(h)
    assert torch.equal(ours.nearest(h), ids)
    torch.testing.assert_close(ours(h)[0].z, z)
    ours.codebook.data[40:] = ours.codebook.data[:10]
    assert ours.nearest(h).max() < 40


@pytest.mark.parametrize("unit_norm", [True, False])
def test_running_means_are_the_reference_s(unit_norm):
    ours = build(UNIT, unit_norm=unit_norm, learn="ema", decay=0.8)
    theirs = reference.VectorQuantize(
        dim=4, codebook_size=24, decay=0.8, use_cosine_sim=unit_norm, threshold_ema_dead_code=0
    )
    book = theirs._codebook
    book.embed.data.copy_(ours.rows()[None])
    book.cluster_size.fill_(6 * 20 / 24)
    book.embed_avg.copy_(book.embed * 6 * 20 / 24)
    for step in range(3):
        h = features(ours, seed=step)
        code, terms = ours(h, draws(step))
        z, ids, loss = theirs(h.detach())
        assert torch.equal(code.ids, ids)
        torch.testing.assert_close(terms["commit"].detach(), loss.squeeze())
        torch.testing.assert_close(ours.codebook, book.embed[0].detach())
        torch.testing.assert_close(ours.counts, book.cluster_size[0])


def test_a_scalar_grid_has_the_reference_s_ids_and_values():
    levels = [8, 5, 4, 7, 3, 6]
    ours, theirs = build(GRID, levels=levels), reference.FSQ(levels)
    h = 3 * features(ours, count=50).detach()
    code, (z, ids) = ours(h)[0], theirs(h)
    same = code.ids == ids  # the published bound and the reference's differ by a thousandth, within which a few lie
    assert same.float().mean() > 0.98
    torch.testing.assert_close(code.z[same], z[same])
    every = torch.arange(ours.vocab)
    torch.testing.assert_close(ours.lookup(every[None])[0], theirs.indices_to_codes(every[None])[0])


@pytest.mark.parametrize("spherical", [True, False])
def test_bits_have_the_reference_s_ids_values_and_terms(spherical):
    ours = build(BITS, spherical=spherical, entropy_temperature=0.5)
    theirs = reference.LFQ(dim=6, spherical=spherical, commitment_loss_weight=1.0, entropy_loss_weight=1.0).train()
    h = features(ours).detach()
    code, terms = ours(h)
    (z, ids, _), parts = theirs(h, inv_temperature=2.0, return_loss_breakdown=True)
    assert torch.equal(code.ids, ids.long())
    torch.testing.assert_close(code.z, z)
    torch.testing.assert_close(terms["entropy"], parts.per_sample_entropy - parts.batch_entropy, atol=1e-3, rtol=0)
    torch.testing.assert_close(terms["commit"], parts.commitment)


@pytest.mark.parametrize("shared", [True, False])
def test_residual_ids_are_the_reference_s(shared):
    ours = build(NODES["residual"], shared=shared).eval()
    theirs = reference.ResidualVQ(dim=4, codebook_size=24, num_quantizers=3, shared_codebook=shared).eval()
    for part, layer in zip(ours.parts_in_order(), theirs.layers):
        layer._codebook.embed.data.copy_(part.codebook[None])
    h = features(ours).detach()
    code, (z, ids, _) = ours(h)[0], theirs(h)
    assert torch.equal(code.ids, ids)
    torch.testing.assert_close(code.z, z)


def test_the_rotation_has_the_reference_s_gradient():
    h, q, g = (torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    h.requires_grad_()
    ours, theirs = rotation_trick(q, h), rotate_to(h, q)
    assert torch.equal(ours, q)
    torch.testing.assert_close(theirs, q)
    (expected,) = torch.autograd.grad((theirs * g).sum(), h)
    torch.testing.assert_close(torch.autograd.grad((ours * g).sum(), h)[0], expected)
    plain = straight_through(q, h)
    assert torch.equal(plain, q) and torch.equal(torch.autograd.grad((plain * g).sum(), h)[0], g)
