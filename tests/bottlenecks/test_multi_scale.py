"""Quantisation of a map scale by scale: the parts add up, terms train what they should, wrong sizes are refused."""

import pytest
import torch
from torch import Tensor

from pipeline.bottlenecks.multi_scale import MultiScale
from pipeline.code import Code, LatentSpec
from pipeline.components import build
from pipeline.draws import StepDraws
from pipeline.nn.scales import nearest_kernels
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

SIDES = [1, 2, 3, 5]
VQ = {"kind": "vector_quantize", "dim": 6, "vocab": 40, "unit_norm": False}
EMA = VQ | {"learn": "ema", "restart": 0.1, "start": "kmeans"}
QUANTIZERS = {
    "vq": VQ,
    "ema": EMA,
    "fsq": {"kind": "finite_scalar", "levels": [5, 4, 3]},
    "product": {"kind": "product", "codebooks": 2, "bottleneck": VQ | {"dim": 3}},
    "residual": {"kind": "residual", "codebooks": 3, "bottleneck": VQ},
}


def neck(bottleneck=VQ, sides=SIDES, **arguments) -> MultiScale:
    torch.manual_seed(3)
    made = MultiScale(bottleneck, sides, **arguments)
    for name, table in made.state_dict().items():
        if name.endswith("codebook"):
            table.normal_()
    return made


def features(made: MultiScale, batch: int = 4) -> Tensor:
    return torch.randn(batch, made.tokens, made.inputs, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@torch.no_grad()
def test_tables_of_levels_make_the_map_that_the_decoder_reads(quantizer):
    made = neck(QUANTIZERS[quantizer])
    code, _ = made(features(made))
    tables = made.level_tables()
    ids = code.ids if code.ids.ndim == 3 else code.ids[..., None]
    rows = tables.rows(ids)
    torch.testing.assert_close(rows, code.z, atol=1e-5, rtol=1e-5)
    whole = made.decoder_input(code.z)
    torch.testing.assert_close(tables.merge(rows).flatten(2).mT, whole, atol=1e-5, rtol=1e-4)
    total = tables.start(len(rows))
    given = [None, *tables.inputs(rows).split([side * side for side in SIDES[1:]], dim=1)]
    for level, part in enumerate(tables.split(rows)):
        if level:  # what it is predicted from is the map so far, at its size
            torch.testing.assert_close(tables.reduce(total, level), given[level])
        total = tables.add(total, part, level)
    torch.testing.assert_close(total.flatten(2).mT, whole, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_every_scale_brings_the_map_nearer_to_the_features():
    made = neck(VQ | {"vocab": 400})
    h = features(made)
    code, _ = made(h)
    tables, total, errors = made.level_tables(), made.level_tables().start(4), []
    for level, part in enumerate(tables.split(code.z)):
        total = tables.add(total, part, level)
        errors.append((total.flatten(2).mT - h).square().mean().item())
    assert errors[-1] < min(errors[:-1]) and errors[-1] < h.square().mean()


def test_the_gradient_of_the_decoder_goes_to_the_features_at_once_and_the_terms_train_phi_and_rows():
    made = neck().train()
    h = features(made).requires_grad_()
    code, terms = made(h, StepDraws(0, 0, slice(0, 4), 4))
    slope = torch.randn_like(h)
    made.decoder_input(code.z, h).mul(slope).sum().backward(retain_graph=True)
    torch.testing.assert_close(h.grad, slope)
    assert made.kernels.grad is None and made.quantizer.codebook.grad is None
    terms["commit"].backward(retain_graph=True)
    assert made.kernels.grad is None and not torch.equal(h.grad, slope)
    before = h.grad.clone()
    terms["vq"].backward()
    assert torch.equal(h.grad, before)
    assert all(part.grad.abs().sum() > 0 for part in (made.kernels, made.offsets, made.quantizer.codebook))


def test_a_codebook_of_running_means_is_updated_once_a_batch_by_the_latents_of_all_scales():
    made = neck(EMA).train()
    h = features(made).requires_grad_()
    made(h, StepDraws(0, 0, slice(0, 4), 4))
    quantizer = made.quantizer
    assert quantizer.started and not quantizer._seen, "the batch is complete"
    start, taken = 4 * len(SIDES) * made.tokens, 4 * sum(side * side for side in SIDES)
    assert quantizer.counts.sum().item() == pytest.approx(0.99 * start + 0.01 * taken, rel=1e-4)
    for rows in (slice(0, 2), slice(2, 4)):  # the same batch in two parts
        made(h[rows].detach().requires_grad_(), StepDraws(0, 1, rows, 4))
        assert bool(quantizer._seen) == (rows.start == 0)


def test_levels_stand_in_the_spec_and_other_maps_are_refused():
    made = neck()
    assert made.spec((5, 5)) == LatentSpec((39,), 6, 40, 1, (1, 4, 9, 25))
    for grid in ((4, 4), (5, 6), (25,)):
        with pytest.raises(ValueError, match=r"sides ends in 5, .* grid of"):
            made.spec(grid)
    with pytest.raises(ValueError, match="maps of 25 places, not of 16"):
        made(torch.zeros(1, 16, 6))
    with pytest.raises(ValueError, match="sides are .* that grow"):
        neck(sides=[2, 2, 3])
    with pytest.raises(ValueError, match="which gaussian does not make"):
        neck({"kind": "gaussian", "dim": 4})
    with pytest.raises(ValueError, match="multi_scale reads a whole map"):
        build(
            "bottlenecks",
            {
                "kind": "residual",
                "codebooks": 2,
                "bottleneck": {"kind": "multi_scale", "bottleneck": VQ, "sides": [1, 2]},
            },
        )
    with pytest.raises(ValueError, match=r"levels of \[1, 4\] tokens"):
        LatentSpec((6,), 4, 16, levels=(1, 4))


def test_kernels_are_shared_by_place():
    assert nearest_kernels(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]  # two of VAR's ten lie half way between places
    assert nearest_kernels(3, 3) == [0, 1, 2] and nearest_kernels(1, 4) == [0] and nearest_kernels(5, 1) == [0] * 5


def tokenizer() -> ConvAutoencoder:
    torch.manual_seed(0)
    bottleneck = {"kind": "multi_scale", "bottleneck": VQ, "sides": [1, 2, 4]}
    made = ConvAutoencoder(16, bottleneck, width=8, multipliers=[1, 2, 2], blocks=1, groups=4).eval()
    made.neck.quantizer.codebook.data.normal_()
    return made


def test_a_mask_tells_which_tokens_of_every_level_lie_within():
    region = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    region[..., :8, :] = True
    region[..., 8, 0] = True
    whole, halves, cells = tokenizer().tokens_within(region).split([1, 4, 16], dim=1)
    assert whole.tolist() == [[True]] and halves.tolist() == [[True, True, False, False]]
    assert cells[0, :9].all() and not cells[0, 9:].any()


@torch.no_grad()
def test_images_of_another_size_are_refused_where_levels_are_of_one_map():
    made = tokenizer()
    code = made.encode(torch.zeros(1, 3, 16, 16))
    assert made.spec.levels == (1, 4, 16) and code.ids.shape == (1, 21)
    torch.testing.assert_close(made.decode(code), made.decode(Code(ids=code.ids)))
    with pytest.raises(ValueError, match="maps of 16 places"):
        made.encode(torch.zeros(1, 3, 32, 32))


@torch.no_grad()
def test_tokenizers_of_scales_may_be_channels_last():
    made = tokenizer()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    before = made.decode(made.encode(images))
    made = made.to(memory_format=torch.channels_last)
    torch.testing.assert_close(made.decode(made.encode(images)), before, atol=1e-4, rtol=1e-4)
