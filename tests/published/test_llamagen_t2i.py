"""LlamaGen by text, imported: the same logits as its blocks written out, for captions padded on either side."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.code import Condition
from pipeline.nn.embeddings import rotary_tables, rotate
from pipeline.published import llamagen_t2i

WIDTH, HEADS, HIDDEN, PLACES, CHANNELS, VOCAB = 24, 2, 40, 5, 7, 11


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "tok_embeddings.weight": (VOCAB, WIDTH),
        "cls_embedding.cap_proj.fc1.weight": (WIDTH, CHANNELS),
        "cls_embedding.cap_proj.fc2.weight": (WIDTH, WIDTH),
        "cls_embedding.uncond_embedding": (PLACES, CHANNELS),
        "norm.weight": (WIDTH,),
        "output.weight": (VOCAB, WIDTH),
    }
    for i in range(2):
        shapes |= {f"layers.{i}.attention_norm.weight": (WIDTH,), f"layers.{i}.ffn_norm.weight": (WIDTH,)}
        shapes |= {
            f"layers.{i}.attention.wqkv.weight": (3 * WIDTH, WIDTH),
            f"layers.{i}.attention.wo.weight": (WIDTH, WIDTH),
            f"layers.{i}.feed_forward.w1.weight": (HIDDEN, WIDTH),
            f"layers.{i}.feed_forward.w3.weight": (HIDDEN, WIDTH),
            f"layers.{i}.feed_forward.w2.weight": (WIDTH, HIDDEN),
        }
    return {name: 0.3 * torch.randn(shape, generator=generator) + (len(shape) == 1) for name, shape in shapes.items()}


def written_out(weights: dict[str, Tensor], ids: Tensor, captions: Tensor, mask: Tensor) -> Tensor:
    """Logits [B, N, vocab] of ids [B, N], given captions whose padding comes first, with their masks."""

    def norm(name: str, h: Tensor) -> Tensor:
        return h / (h.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weights[name]

    projected = F.gelu(captions @ weights["cls_embedding.cap_proj.fc1.weight"].T, approximate="tanh")
    h = torch.cat(
        [projected @ weights["cls_embedding.cap_proj.fc2.weight"].T, weights["tok_embeddings.weight"][ids[:, :-1]]], 1
    )
    tables = [F.pad(table, (0, 0, PLACES, 0))[: h.shape[1]] for table in rotary_tables([2, 2], WIDTH // HEADS)]
    seen = F.pad(mask, (0, ids.shape[1] - 1), value=True)[:, None] & torch.ones(h.shape[1], h.shape[1]).tril().bool()
    seen = (seen | torch.eye(h.shape[1], dtype=torch.bool))[:, None]
    for i in range(2):
        x = norm(f"layers.{i}.attention_norm.weight", h) @ weights[f"layers.{i}.attention.wqkv.weight"].T
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in x.chunk(3, dim=-1))
        q, k = rotate(q, *tables), rotate(k, *tables)
        scores = (q @ k.mT / (WIDTH // HEADS) ** 0.5).masked_fill(~seen, -torch.inf)
        h = h + (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2) @ weights[f"layers.{i}.attention.wo.weight"].T
        x = norm(f"layers.{i}.ffn_norm.weight", h)
        gate, value = (x @ weights[f"layers.{i}.feed_forward.w{j}.weight"].T for j in (1, 3))
        h = h + (F.silu(gate) * value) @ weights[f"layers.{i}.feed_forward.w2.weight"].T
    return (norm("norm.weight", h) @ weights["output.weight"].T)[:, PLACES - 1 :]


@torch.no_grad()
def test_logits_are_those_of_the_release_and_its_null_is_kept():
    weights, ids = state(), torch.randint(VOCAB, (3, 4))
    network = llamagen_t2i.convert(weights, heads=HEADS, tokens=4)["network"]
    lengths = torch.tensor([2, 5, 3])
    left = torch.arange(PLACES) >= PLACES - lengths[:, None]
    text = torch.randn(3, PLACES, CHANNELS) * left[..., None]
    expected = written_out(weights, ids, text, left)
    found = network(ids, Condition(text=text, text_mask=left))[:, :, 0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    right = torch.stack([row.roll(int(length), dims=0) for row, length in zip(text, lengths)])
    found = network(ids, Condition(text=right, text_mask=left.flip(1)))[:, :, 0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    null = weights["cls_embedding.uncond_embedding"].expand(3, -1, -1)
    expected = written_out(weights, ids, null, torch.ones_like(left))
    torch.testing.assert_close(network(ids)[:, :, 0], expected, atol=1e-4, rtol=1e-4)


def test_states_that_are_not_llamagens_by_text_are_refused():
    weights = state()
    with pytest.raises(ValueError, match="uncond_embedding"):
        llamagen_t2i.convert({name: value for name, value in weights.items() if "uncond" not in name})
    with pytest.raises(ValueError, match="unexpected"):
        llamagen_t2i.convert(
            weights | {"cls_embedding.embedding_table.weight": torch.zeros(3, WIDTH)}, heads=2, tokens=4
        )
