"""RecTok's checkpoints with norms of queries and keys, a switch that no released one has."""

from pathlib import Path

import torch
from golden_kinds import Case

GOLDEN = Path(__file__).parents[1] / "golden" / "rectok"


def test_norms_of_queries_and_keys_are_read_off_the_keys():
    case = Case(GOLDEN)
    norms = {
        f"model.{half}.transformer.{block}.attn.{side}_norm.weight": torch.rand(width) + 0.5
        for half, width in (("encoder", 12), ("decoder", 8))
        for block in range(2)
        for side in "qk"
    }
    tokenizers = [
        case.imported("rectok", state, heads=2, decoder_heads=4)["tokenizer"]
        for state in (case.state, case.state | norms)
    ]
    assert [tokenizer.config.query_key_norm for tokenizer in tokenizers] == [False, True]
    attention = tokenizers[1].decoder.transformer.blocks[1].attention
    assert torch.equal(attention.key_norm.weight, norms["model.decoder.transformer.1.attn.k_norm.weight"])
    codes = [tokenizer.encode(torch.zeros(1, 3, 16, 16)).z for tokenizer in tokenizers]
    assert not torch.allclose(*codes, atol=1e-3)
