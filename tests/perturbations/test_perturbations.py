"""Perturbations: what they change and how often, whose gradient they keep, and that only training sees them."""

import inspect
from collections import Counter

import pytest
import torch
from support.small_quantizers import BITS, EUCLID, GRID, NODES, UNIT, build, features
from support.tiny_pipeline import make_recipe
from torch import Tensor

from pipeline import components
from pipeline.bottlenecks.base import Composite, Quantizer
from pipeline.checks.tokenizer import check_tokenizer
from pipeline.code import Code, stack_ids
from pipeline.draws import StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.losses.pixel import Pixel
from pipeline.perturbations.base import Annealing, Perturbation
from pipeline.perturbations.codebook_neighbours import CodebookNeighbours
from pipeline.perturbations.gaussian import Gaussian
from pipeline.perturbations.interpolated import Interpolated
from pipeline.perturbations.prefix_drop import PrefixDrop
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.base import Tokenizer
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.tokenizers.titok import TiTok
from pipeline.training.reconstruction import Reconstruction

CONV = {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
TITOK = {"tokens": 6, "width": 24, "depth": 1, "heads": 3, "patch_size": 4}
BOTH = pytest.mark.parametrize("neighbours", ["latent", "codeword"])
EVERY_QUANTISER = pytest.mark.parametrize("node", NODES.values(), ids=NODES.keys())


def draws(batch: int = 6, step: int = 0, places: slice | None = None) -> StepDraws:
    return StepDraws(0, step, places or slice(0, batch), batch)


def made(node: dict, count: int = 6, tokens: int = 20) -> tuple[Quantizer, Tensor, Code]:
    """A quantiser in evaluation, features that require a gradient, and their code."""
    quantizer = build(node).eval()
    h = features(quantizer, count, tokens)
    return quantizer, h, quantizer(h)[0]


@BOTH
@EVERY_QUANTISER
def test_without_rate_fraction_or_strength_the_decoder_reads_the_code(node, neighbours):
    quantizer, h, code = made(node)
    nothing = [{"fraction": 0.0}, {"rate": 0.0, "fraction": 1.0}]
    for arguments in [{"strength": 5} | some for some in nothing] + [{"strength": 1, "fraction": 1.0}]:
        perturb = CodebookNeighbours(neighbours=neighbours, **arguments)
        assert torch.equal(perturb(quantizer, h, code, draws(), 0), code.z)


@BOTH
@EVERY_QUANTISER
def test_the_first_images_of_the_global_batch_change_and_the_gradient_is_the_clean_one(node, neighbours):
    quantizer, h, code = made(node)
    perturb = CodebookNeighbours(4, fraction=0.5, neighbours=neighbours)
    z = perturb(quantizer, h, code, draws(), 0)
    changed = (z != code.z).any(dim=-1).float().mean(dim=1)
    assert changed[:3].min() > 0.4 and changed[3:].max() == 0
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(5))
    ours, clean = (torch.autograd.grad((v * weights).sum(), h, retain_graph=True)[0] for v in (z, code.z))
    torch.testing.assert_close(ours, clean)
    if node == EUCLID:
        torch.testing.assert_close(ours, weights)


@BOTH
@pytest.mark.parametrize("node", [UNIT, EUCLID, GRID, BITS], ids=["unit", "euclid", "grid", "bits"])
def test_ids_change_at_the_stated_rate_evenly_into_the_nearest(node, neighbours):
    quantizer, h, code = made(node, 40, 50)
    rate, strength = 0.7, 6
    latents = quantizer.latents(h) if neighbours == "latent" else None
    ids = quantizer.redraw_ids(code.ids, rate, strength, draws(40), latents)
    change = (ids != code.ids).float().mean().item()
    assert change == pytest.approx(rate * (1 - 1 / strength), abs=0.04)
    rows = quantizer.lookup(torch.arange(quantizer.vocab)).float()
    points = (quantizer.lookup(code.ids) if latents is None else latents).float().detach()
    apart = torch.cdist(points.flatten(0, 1), rows, compute_mode="donot_use_mm_for_euclid_dist")
    farthest = apart.sort(dim=1).values[:, strength - 1]
    assert (apart.gather(1, ids.flatten()[:, None])[:, 0] <= farthest + 1e-5).all()
    if node == EUCLID and latents is None:  # no ties: every rank comes equally often
        order = apart.argsort(dim=1, stable=True)
        rank = (order == ids.flatten()[:, None]).int().argmax(dim=1).bincount(minlength=strength) / ids.numel()
        expected = torch.full((strength,), rate / strength)
        expected[0] += 1 - rate
        torch.testing.assert_close(rank, expected, atol=0.04, rtol=0)


def test_near_binary_codes_differ_in_few_bits_each_bit_as_often_and_need_no_table():
    quantizer = build(BITS, bits=60)
    ids = torch.randint(2**60, (50, 40), generator=torch.Generator().manual_seed(1))
    moved = quantizer.redraw_ids(ids, 1.0, 61, draws(50))
    bits = ((ids ^ moved)[..., None] >> torch.arange(60)) & 1
    assert bits.sum(dim=-1).max() == 1 and bits.sum(dim=-1).min() == 0
    assert bits.float().mean(dim=(0, 1)).sum().item() == pytest.approx(60 / 61, abs=0.02)
    assert (bits.float().mean(dim=(0, 1)) > 0).all()
    moved = quantizer.redraw_ids(ids, 1.0, 61 + 60 * 59 // 2, draws(50))
    assert ((ids ^ moved)[..., None] >> torch.arange(60) & 1).sum(dim=-1).max() == 2


@pytest.mark.parametrize("name", ["residual", "shared", "residual_grid", "residual_bits", "product", "nested"])
def test_every_codebook_is_redrawn_by_its_own_latents_and_draws(name):
    quantizer, h, code = made(NODES[name])
    assert isinstance(quantizer, Composite)
    with torch.no_grad():
        own = quantizer.split_ids(code.ids)
        for part, ids, latents in zip(
            quantizer.parts_in_order(), own, quantizer.latents_of_parts(quantizer.latents(h), own)
        ):
            assert torch.equal(part.quantize(latents)[0].ids, ids)
    changed = stack_ids(quantizer.redraw_ids(code.ids, 0.5, 8, draws()) != code.ids).flatten(0, 1).float()
    assert changed.mean(dim=0).sub(0.5 * 7 / 8).abs().max() < 0.2
    assert all((changed[:, 0] != changed[:, k]).any() for k in range(1, changed.shape[1]))


def test_what_has_no_near_codes_is_refused():
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="is continuous"):
        components.build("bottlenecks", {"kind": "identity", "dim": 3}).redraw_ids(ids, 1.0, 2, draws(2))
    with pytest.raises(ValueError, match="cannot be looked for"):
        build(GRID, levels=[64, 64, 64, 64]).redraw_ids(ids, 1.0, 2, draws(2))


def test_annealing_begins_where_it_starts_and_ends_where_it_ends():
    perturb = CodebookNeighbours(100, rate=1.0, anneal=Annealing(40, 120))
    expected = {0: (1.0, 100), 40: (1.0, 100), 80: (0.75, 75), 120: (0.5, 50), 10**6: (0.5, 50)}
    assert {step: perturb.at(step) for step in expected} == expected
    assert CodebookNeighbours(100, anneal=Annealing(0, 10, to=0.0)).at(10) == (0.0, 1)
    z = torch.randn(4, 3, 2)
    for perturb in (Gaussian(1.0, anneal=Annealing(1, 5, 0.0)), Interpolated(anneal=Annealing(1, 5, 0.0))):
        assert not torch.equal(perturb(None, z, Code(z), draws(4), 4), z)
        assert torch.equal(perturb(None, z, Code(z), draws(4), 5), z)
    with pytest.raises(ValueError, match="end is step 5, and start is step 5"):
        Annealing(5, 5)


def test_gaussian_noise_is_one_uniform_level_an_image_times_normal_noise():
    z, given = torch.randn(400, 8, 4, requires_grad=True), draws(400)
    shown = Gaussian(0.8, fraction=0.5)(None, z, Code(z), given, 0)
    level = given.uniform("perturbation.level", (1, 1))
    torch.testing.assert_close((shown - z)[:200], (0.8 * level * given.normal("perturbation.noise", (8, 4)))[:200])
    assert torch.equal(shown[200:], z[200:])
    assert level.mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(torch.autograd.grad(shown.sum(), z)[0], torch.ones_like(z))


def test_interpolated_noise_is_flow_matching_s_at_a_shifted_level():
    z, given = torch.randn(400, 8, 4), draws(400)
    t, noise = given.uniform("perturbation.level", (1, 1)), given.normal("perturbation.noise", (8, 4))
    torch.testing.assert_close(Interpolated()(None, z, Code(z), given, 0), (1 - t) * z + t * noise)
    u = 3 * t / (1 + 2 * t)
    torch.testing.assert_close(Interpolated(2.0, 3.0)(None, z, Code(z), given, 0), (1 - u) * z + 2 * u * noise)
    assert u.mean() > t.mean() and u.max() <= 1


def test_lengths_of_prefixes_have_the_stated_distribution():
    assert PrefixDrop().chances(4) == {k: 0.25 for k in (1, 2, 3, 4)}
    assert PrefixDrop("powers_of_two").chances(12) == {k: 0.2 for k in (1, 2, 4, 8, 12)}
    restok = PrefixDrop("powers_of_two", "by_length", 4, 0.8, "sample", "mask").chances(128)
    assert list(restok) == [4, 8, 16, 32, 64, 128] and restok[128] == 0.8
    assert restok[64] == pytest.approx(0.2 * 64 / 124) and sum(restok.values()) == pytest.approx(1)
    assert PrefixDrop(least=6, full=0.3).chances(6) == {6: 1.0}
    uniform = (torch.arange(1000) + 0.5) / 1000
    for drop in (PrefixDrop(), PrefixDrop("powers_of_two", "by_length", full=0.4), PrefixDrop(full=1.0)):
        count = Counter(drop.count_kept(uniform, 8).tolist())
        for length, chance in drop.chances(8).items():
            assert count[length] == pytest.approx(1000 * chance, abs=2)


def test_a_prefix_is_the_batch_s_or_the_image_s_own_and_the_rest_is_cut_or_zero():
    z = torch.randn(40, 8, 3)
    cut = [PrefixDrop()(None, z, Code(z), draws(40, step), step) for step in range(60)]
    assert {part.shape[1] for part in cut} == set(range(1, 9))
    assert all(torch.equal(part, z[:, : part.shape[1]]) for part in cut)
    masked = PrefixDrop(action="mask")(None, z, Code(z), draws(40), 0)
    assert torch.equal(masked, torch.cat([cut[0], torch.zeros_like(z[:, cut[0].shape[1] :])], dim=1))
    own = PrefixDrop(scope="sample", action="mask")(None, z, Code(z), draws(40), 0)
    kept = (own != 0).all(dim=-1)
    assert set(kept.sum(dim=1).tolist()) == set(range(1, 9))
    assert torch.equal(kept.int(), kept.int().cummin(dim=1).values) and torch.equal(own, z * kept[:, :, None])


@pytest.mark.parametrize(
    "perturb, node",
    [
        (CodebookNeighbours(6, fraction=0.7), UNIT),
        (CodebookNeighbours(6, fraction=0.7, neighbours="codeword"), NODES["residual_bits"]),
        (Gaussian(1.0, fraction=0.7), {"kind": "identity", "dim": 4}),
        (Interpolated(shift=2.0, fraction=0.7), {"kind": "identity", "dim": 4}),
        (PrefixDrop(), {"kind": "identity", "dim": 4}),
        (PrefixDrop(scope="sample", action="mask"), {"kind": "identity", "dim": 4}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Perturbation) else "",
)
def test_any_split_of_the_global_batch_sees_the_same(perturb, node):
    neck = components.build("bottlenecks", node)
    h = torch.randn(10, 7, neck.inputs)
    code = neck(h)[0]
    whole = perturb(neck, h, code, draws(10, 3), 3)
    assert whole.shape != code.z.shape or not torch.equal(whole, code.z)
    for bounds in ((0, 5, 10), (0, 3, 6, 8, 10)):
        parts = [slice(*pair) for pair in zip(bounds, bounds[1:])]
        seen = [perturb(neck, h[part], code[part], draws(10, 3, part), 3) for part in parts]
        torch.testing.assert_close(torch.cat(seen), whole)


def task(tokenizer: Tokenizer, perturbation: dict | None, **weights: float) -> Reconstruction:
    phase = Phase(Loop(1, {"tokenizer": 1e-3}), {"pixel": 1.0} | weights, perturbation=perturbation)
    return Reconstruction(tokenizer, phase, {"pixel": Pixel()})


def turn(of: Reconstruction, images: Tensor) -> dict[str, Tensor]:
    ((_, terms),) = of.turns(ImageBatch(images), draws(len(images)), 0)
    sum(terms.values()).backward()
    return {name: value.detach() for name, value in terms.items()}


def test_training_decodes_the_perturbed_code_and_nothing_else_reads_it():
    torch.manual_seed(0)
    tokenizer = ConvAutoencoder(16, UNIT, **CONV)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        before = tokenizer.decode(tokenizer.encode(images))
    clean = turn(task(tokenizer, None, vq=1.0, commit=0.25), images)
    gradient = [p.grad.clone() for p in tokenizer.neck.parameters()]
    tokenizer.zero_grad()
    perturbation = {"kind": "codebook_neighbours", "strength": 12, "fraction": 1.0}
    other = turn(task(tokenizer, perturbation, vq=1.0, commit=0.25), images)
    assert torch.equal(other["vq"], clean["vq"]) and torch.equal(other["commit"], clean["commit"])
    assert other["pixel"] != clean["pixel"]
    assert all(torch.equal(p.grad, g) for p, g in zip(tokenizer.neck.parameters(), gradient))
    with torch.no_grad():
        assert torch.equal(tokenizer.decode(tokenizer.encode(images)), before)
    for name in ("encode", "decode", "render", "features", "moments"):
        assert "perturb" not in inspect.signature(getattr(tokenizer, name)).parameters


@pytest.mark.parametrize("action", ["truncate", "mask"])
def test_a_1d_tokenizer_trains_with_its_tail_dropped_and_decodes_prefixes(action):
    torch.manual_seed(0)
    tokenizer = TiTok(16, UNIT, **TITOK)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    terms = turn(task(tokenizer, {"kind": "prefix_drop", "action": action}, vq=1.0, commit=0.25), images)
    assert terms["pixel"].isfinite() and tokenizer.decoder.token_positions.grad[0].any()
    with torch.no_grad():
        ids = tokenizer.encode(images).ids
        assert tokenizer.decode(Code(ids=ids[:, :2])).shape == images.shape
        assert torch.equal(tokenizer.forward(images).images, tokenizer.forward(images).images)


def recipe_of(perturbation: dict, discrete: bool, one_d: bool = False):
    neck = UNIT if discrete else {"kind": "gaussian", "dim": 3}
    model = {"kind": "titok", **TITOK} if one_d else {"kind": "conv_autoencoder", **CONV}
    weights = {"pixel": 1.0} | ({"vq": 1.0, "commit": 0.25} if discrete else {"kl": 1e-6})
    phase = {"loop": {"steps": 1, "lr": {"tokenizer": 1e-3}}, "weights": weights, "perturbation": perturbation}
    return make_recipe(tokenizer={"model": model | {"bottleneck": neck}, "phases": {"main": phase}})


@pytest.mark.parametrize(
    "node, discrete, one_d",
    [
        ({"kind": "codebook_neighbours", "strength": 3, "anneal": {"start": 1, "end": 2}}, True, False),
        ({"kind": "gaussian", "scale": 0.8}, False, False),
        ({"kind": "interpolated", "shift": 2.8}, False, True),
        ({"kind": "prefix_drop"}, True, True),
        ({"kind": "prefix_drop", "scope": "sample", "action": "mask"}, False, True),
    ],
)
def test_a_recipe_states_one_a_phase(node, discrete, one_d):
    check_tokenizer(recipe_of(node, discrete, one_d))


@pytest.mark.parametrize(
    "node, discrete, one_d, message",
    [
        ({"kind": "codebook_neighbours", "strength": 3}, False, False, "this tokenizer has none; take gaussian"),
        ({"kind": "codebook_neighbours", "strength": 30}, True, False, "strength 30 is more than the 24 codes"),
        ({"kind": "codebook_neighbours", "strength": 0}, True, False, "strength is 0; give 1 or more"),
        ({"kind": "codebook_neighbours", "strength": 3, "fraction": 2}, True, False, "fraction is 2; give a fraction"),
        ({"kind": "codebook_neighbors", "strength": 3}, True, False, "did you mean 'codebook_neighbours'"),
        ({"kind": "gaussian", "scale": 0.8}, True, False, "gaussian noise is for continuous codes"),
        ({"kind": "gaussian", "scale": -1}, False, False, "scale is -1; give 0 or more"),
        ({"kind": "interpolated"}, True, True, "interpolated noise is for continuous codes"),
        ({"kind": "interpolated", "shift": 0}, False, True, "shift is 0; give a number above 0"),
        ({"kind": "prefix_drop"}, True, False, "prefix_drop is for 1-D tokens"),
        ({"kind": "prefix_drop", "least": 7}, True, True, "least 7 is more than the 6 tokens"),
        ({"kind": "prefix_drop", "scope": "sample"}, True, True, "set action=mask or scope=batch"),
    ],
)
def test_what_does_not_fit_the_codes_is_refused_in_one_line(node, discrete, one_d, message):
    with pytest.raises(ValueError, match=message) as error:
        check_tokenizer(recipe_of(node, discrete, one_d))
    assert "\n" not in str(error.value) and str(error.value).startswith("tokenizer.phases.main.perturbation")
