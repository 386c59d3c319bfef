"""LaVIT's tokenizer: some tokens are kept, the rest is merged into them, and a row decodes up to its end."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.code import Code
from pipeline.components import build
from pipeline.draws import StepDraws
from pipeline.nn.row_ends import before_end, pack
from pipeline.nn.token_merger import TokenMerger, masked_attention
from pipeline.nn.token_selector import likeliest_decisions, sample_decisions
from pipeline.tokenizers.lavit import Lavit

SIDE, PLACES, VOCAB = 16, 16, 24


def tokenizer(**settings: object) -> Lavit:
    torch.manual_seed(1)
    node = {
        "kind": "lavit",
        "frozen_encoder": {"kind": "stand_in"},
        "bottleneck": {"kind": "vector_quantize", "dim": 4, "vocab": VOCAB},
        **{"depth": 2, "heads": 2, "hidden": 48, "place_positions": True},
        **{"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2, "decoder_hidden": 48},
        **{"context_width": 16, "pixel_width": 32, "pixel_depth": 1, "pixel_heads": 2, "pixel_patch": 4},
    }
    model = build("tokenizers", node | settings, image_size=SIDE).eval()
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)  # so that its features differ, untrained as it is
        model.selector.layers[-1].weight.mul_(30)  # so that it tells tokens apart
    return model


def images(count: int = 6) -> Tensor:
    noise = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return noise * torch.logspace(-2, 0, count)[:, None, None, None]


def lengths(ids: Tensor) -> list[int]:
    return before_end(ids, VOCAB).sum(dim=1).tolist()


@torch.no_grad()
def set_chance(model: Lavit, keep: float) -> None:
    """Let the selector keep every token with this log-odds."""
    model.selector.layers[-1].weight.zero_()
    model.selector.layers[-1].bias.copy_(torch.tensor([keep, 0.0]))


@torch.no_grad()
def test_pictures_have_rows_of_different_lengths():
    model = tokenizer()
    ids = model.encode(images()).ids
    assert len(set(lengths(ids))) > 2 and min(lengths(ids)) >= 1 and max(lengths(ids)) <= PLACES
    for row, length in zip(ids, lengths(ids)):
        assert (row[:length] < VOCAB).all() and (row[length:] == VOCAB).all()
    chances = model.selector(model.place_vectors(model.foundation(images())))[..., 0].exp()
    assert lengths(ids) == chances.sum(dim=1).round().clamp(min=1).int().tolist()  # as many as are expected


@torch.no_grad()
def test_with_every_token_kept_there_is_no_selector():
    model = tokenizer()
    set_chance(model, 50.0)
    tokens = model.place_vectors(model.foundation(images()))
    plain = model.neck(model.to_code(model.merger(tokens, torch.ones(tokens.shape[:2]))))[0]
    for draws in (None, StepDraws(0, 0, slice(0, 6), 6)):
        code = model.encode(images(), draws=draws)
        assert torch.equal(code.ids, plain.ids) and (code.ids < VOCAB).all()
        torch.testing.assert_close(code.z, plain.z)


@torch.no_grad()
def test_one_token_is_kept_where_none_would_be():
    model = tokenizer()
    set_chance(model, -50.0)
    for draws in (None, StepDraws(0, 0, slice(0, 6), 6)):
        assert lengths(model.encode(images(), draws=draws).ids) == [1] * 6


@torch.no_grad()
def test_what_follows_the_end_never_changes_a_picture():
    model = tokenizer()
    ids = torch.randint(VOCAB, (3, PLACES), generator=torch.Generator().manual_seed(3))
    ids[0, 4:], ids[1, 9] = VOCAB, VOCAB
    shown = model.decode(Code(ids=ids))
    other = ids.clone()
    other[0, 5:], other[1, 10:] = 7, torch.arange(PLACES - 10)
    assert torch.equal(model.decode(Code(ids=other)), shown)
    assert torch.equal(model.decoder_input(Code(ids=other)), model.decoder_input(Code(ids=ids)))
    for place in (3, 0):  # and what comes before does
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % VOCAB
        assert (model.decode(Code(ids=changed)) - shown).abs().amax(dim=(1, 2, 3)).min() > 1e-5
    z = model.decoder_input(Code(ids=ids))
    for row, length in enumerate((4, 9, PLACES)):  # the same as a row that is no longer
        cut = z[row : row + 1, :length]
        read = model.feature_decoder(cut, torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(read, model.rebuild(z)[row : row + 1])
    empty = torch.full((1, PLACES), VOCAB)
    assert model.decode(Code(ids=empty)).isfinite().all()


@torch.no_grad()
def test_the_merger_is_causal_among_kept_tokens_and_reads_all_that_are_dropped():
    torch.manual_seed(0)
    merger = TokenMerger(16, 2, 2, 24).eval()
    features, kept = torch.randn(1, 6, 16), torch.tensor([[1.0, 0, 1, 1, 0, 1]])
    before = merger(features, kept)

    def changed_by(place: int) -> list[int]:
        """The kept places whose tokens change with the feature of a place."""
        other = features.clone()
        other[0, place] += torch.randn(16)
        moved = (merger(other, kept) - before)[0].abs().amax(dim=1) > 1e-4
        return [i for i in range(6) if moved[i] and kept[0, i]]

    assert [changed_by(place) for place in range(6)] == [
        [0, 2, 3, 5],
        [0, 2, 3, 5],
        [2, 3, 5],
        [3, 5],
        [0, 2, 3, 5],
        [5],
    ]


def test_masks_of_ones_leave_attention_as_it_is_and_have_a_gradient_where_they_are_zero():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 4) for _ in range(3))
    triangle = torch.ones(5, 5).tril()
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(masked_attention(q, k, v, triangle[None, None]), plain, atol=1e-4, rtol=1e-4)
    mask = triangle[None, None].expand(2, 1, 5, 5).clone().requires_grad_()
    masked_attention(q, k, v, mask).square().sum().backward()
    assert (mask.grad[:, :, triangle == 0].abs() > 0).all()
    nothing = masked_attention(q, k, v, torch.zeros(2, 1, 5, 5))  # every key masked: the mean of all
    torch.testing.assert_close(nothing, v.mean(dim=2, keepdim=True).expand_as(v))


def test_decisions_are_whole_numbers_with_the_gradient_of_chances():
    chances = torch.randn(3, 5, 2).log_softmax(dim=-1).requires_grad_()
    noise, weight = torch.randn(3, 5, 2), torch.randn(3, 5)
    decisions = sample_decisions(chances, noise)
    assert set(decisions.flatten().tolist()) == {0.0, 1.0}
    slope = torch.autograd.grad((decisions * weight).sum(), chances)[0]
    soft = torch.autograd.grad(((chances + noise).softmax(dim=-1)[..., 0] * weight).sum(), chances)[0]
    torch.testing.assert_close(slope, soft)
    likeliest = likeliest_decisions(chances)
    slope = torch.autograd.grad((likeliest * weight).sum(), chances)[0]
    torch.testing.assert_close(slope[..., 0], weight * chances[..., 0].exp())
    assert slope[..., 1].abs().max() == 0


def test_the_term_moves_the_share_of_kept_tokens_to_its_goal():
    for chance, down in ((3.0, True), (-3.0, False)):
        model = tokenizer(keep=0.5)
        set_chance(model, chance)
        terms = model(images(), pixels=False, draws=StepDraws(0, 0, slice(0, 6), 6)).terms
        slope = torch.autograd.grad(terms["kept_share"], model.selector.layers[-1].bias)[0]
        assert (slope[0] > 0) == down and 0.05 < terms["kept_share"].item() < 0.25


@torch.no_grad()
def test_a_row_holds_kept_tokens_in_order_and_the_bottleneck_sees_no_others():
    tokens = torch.arange(12.0).reshape(2, 6, 1)
    kept = torch.tensor([[0, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)
    rows, filled = pack(tokens, kept)
    assert rows[..., 0].tolist() == [[1, 4, 5, 1, 4, 5], [6] * 6]
    assert filled.sum(dim=1).tolist() == [3, 1]


def test_ids_are_learned_without_pixels():
    model = tokenizer().train()
    rebuilt = model(images(), pixels=False, draws=StepDraws(0, 0, slice(0, 6), 6))
    assert rebuilt.images is None and set(rebuilt.terms) == {"vq", "commit", "kept_share"}
    made, target = rebuilt.features["rebuilt_foundation"], rebuilt.features["foundation"]
    assert made.shape == target.shape == (6, PLACES, 64)
    (sum(rebuilt.terms.values()) + (made - target).square().mean()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None and id(p) in ids_of(model, "ids")]
    assert all(p.grad is None for p in model.trainable("pixel_decoder"))
    assert ids_of(model, "ids") | ids_of(model, "pixel_decoder") == ids_of(model, "all")


def ids_of(model: Lavit, part: str) -> set[int]:
    return {id(p) for p in model.trainable(part)}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"heads": 5}, "lavit: a width of 64 is not divisible by 5 heads"),
        ({"decoder_heads": 3}, "lavit: a width of 32 is not divisible by 3 heads"),
        ({"pixel_heads": 5}, "lavit: a width of 32 is not divisible by 5 heads"),
        ({"pixel_patch": 5}, "pixel_patch 5"),
        ({"bottleneck": {"kind": "gaussian", "dim": 4}}, "lavit: gaussian has no one codebook of rows"),
        ({"bottleneck": {"kind": "finite_scalar", "levels": [3, 3]}}, "lavit: finite_scalar has no one codebook"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        tokenizer(**settings)
    assert "\n" not in str(error.value)
