"""Bits of ids: back and forth, and a head whose logits of ids are those of independent bits."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.bottlenecks.binary import Binary
from pipeline.nn.bits import BitHead, bits_of, bits_to_ids, ids_to_bits
from pipeline.samplers.choice import Choice


@pytest.mark.parametrize("vocab, codebooks", [(2, 5), (16, 1), (8, 3), (2**40, 2)])
def test_ids_are_their_bits_and_back(vocab, codebooks):
    ids = torch.randint(vocab, (3, 4, codebooks))
    bits = ids_to_bits(ids, vocab)
    assert bits.shape == (3, 4, codebooks * bits_of(vocab)) and set(bits.unique().tolist()) <= {0, 1}
    assert torch.equal(bits_to_ids(bits, vocab), ids)


def test_bits_are_the_signs_of_a_lookup_free_code():
    binary = Binary(bits=6)
    code, _ = binary(torch.randn(2, 5, 6))
    assert torch.equal(ids_to_bits(code.ids[..., None], binary.vocab), (code.z > 0).long())


@pytest.mark.parametrize("vocab", [0, 1, 3, 12])
def test_a_codebook_that_is_no_power_of_two_has_no_bits(vocab):
    with pytest.raises(ValueError, match=f"codebooks of 2, 4, 8, ... ids, and this one has {vocab}"):
        bits_of(vocab)


def test_cross_entropy_of_ids_is_that_of_their_bits():
    head, h, ids = BitHead(8, 3, 5), torch.randn(2, 4, 5), torch.randint(8, (2, 4, 3))
    torch.nn.init.normal_(head.linear.bias)
    together = F.cross_entropy(head(h).flatten(0, 2), ids.flatten(), reduction="sum")
    bits = ids_to_bits(ids, 8).float()
    apart = F.binary_cross_entropy_with_logits(head.linear(h), bits, reduction="sum")
    torch.testing.assert_close(together, apart)


def test_ids_of_all_codebooks_are_chosen_at_once():
    head, h, uniform = BitHead(4, 6, 5), torch.randn(2, 1, 5), torch.rand(2, 1, 6)
    logits = head(h)
    chosen = head.choose(h, lambda logits, codebook: Choice(0.7)(logits, uniform[..., codebook]))
    each = [Choice(0.7)(logits[:, :, k], uniform[:, :, k]) for k in range(6)]
    assert torch.equal(chosen, torch.stack(each, dim=-1))
