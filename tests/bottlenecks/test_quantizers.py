"""Quantisers: codes and ids that agree, terms that push the right way, codebooks that learn alike everywhere."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.codebook_task import IN_ONE_BATCH, NECKS, fit
from support.processes import start_two
from support.small_quantizers import BITS, EUCLID, GRID, NODES, UNIT, build, draws, features
from torch import Tensor

from pipeline import components
from pipeline.bottlenecks.base import Quantizer
from pipeline.bottlenecks.vector_quantize import VectorQuantize
from pipeline.code import stack_ids
from pipeline.nn import entropy
from pipeline.nn.clusters import cluster_sums, k_means
from pipeline.training.ema import Average

every = pytest.mark.parametrize("name", NODES)


# ---- every quantiser


@every
def test_the_ids_looked_up_are_the_code(name):
    quantizer = build(NODES[name]).eval()
    code, terms = quantizer(features(quantizer))
    assert code.z.shape == (6, 20, quantizer.dim) and code.ids.dtype == torch.int64
    assert stack_ids(code.ids).shape == (6, 20, quantizer.codebooks)
    assert code.ids.min() >= 0 and code.ids.max() < quantizer.vocab
    assert torch.equal(code.z, quantizer.lookup(code.ids))
    cls, arguments = components.check("bottlenecks", NODES[name])
    assert tuple(terms) == cls.terms(arguments)


@every
def test_every_id_is_the_nearest_to_its_own_vector(name):
    quantizer = build(NODES[name])
    ids = torch.randint(quantizer.vocab, (3, 50, quantizer.codebooks), generator=torch.Generator().manual_seed(2))
    z = quantizer.lookup(ids if quantizer.codebooks > 1 else ids[..., 0])
    assert z.shape == (3, 50, quantizer.dim) and len(z.flatten(0, 1).unique(dim=0)) > 1
    if name.startswith(("residual", "shared", "nested")):
        return  # a sum of vectors is found again by taking the nearest one after the other only by chance
    code, _ = quantizer.eval().quantize(z)
    torch.testing.assert_close(stack_ids(code.ids), ids)


@every
def test_without_draws_or_in_evaluation_nothing_is_random_and_nothing_changes(name):
    quantizer = build(NODES[name])
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    first, second = quantizer(features(quantizer))[0], quantizer(features(quantizer))[0]
    third = quantizer.eval()(features(quantizer), draws(7))[0]
    assert torch.equal(first.ids, second.ids) and torch.equal(first.ids, third.ids)
    quantizer.train()(features(quantizer).detach(), draws())  # frozen latents: their codebook is not moved either
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


@every
def test_every_parameter_and_the_features_get_a_finite_gradient(name):
    quantizer = build(NODES[name])
    h = features(quantizer)
    code, terms = quantizer(h, draws())
    (code.z.square().mean() + sum(terms.values())).backward()
    for tensor in [h, *quantizer.parameters()]:
        assert tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0


@every
def test_training_resumes_from_a_saved_state_unchanged(name, tmp_path):
    whole = build(NODES[name])
    for step in range(4):
        if step == 2:
            save_file(whole.state_dict(), tmp_path / "state.safetensors")
            loaded = build(NODES[name])
            loaded.load_state_dict(load_file(tmp_path / "state.safetensors"))
        for quantizer in [whole] if step < 2 else [whole, loaded]:
            code, _ = quantizer(features(quantizer, seed=step), draws(step))
            if quantizer is whole:
                expected = code.ids
        assert torch.equal(code.ids, expected)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), loaded.state_dict().values()))


@every
def test_distances_are_taken_in_float32_under_autocast(name):
    quantizer = build(NODES[name]).eval()
    h = features(quantizer).detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        code, terms = quantizer(h)
    plain, expected = quantizer(h.float())
    assert code.z.dtype == torch.bfloat16 and torch.equal(code.ids, plain.ids)
    assert all(terms[key].dtype == torch.float32 and terms[key] == expected[key] for key in terms)


@every
def test_a_module_in_half_precision_gives_codes_in_it(name):
    quantizer = build(NODES[name]).half().eval()
    code, _ = quantizer(features(quantizer).detach().half())
    rows = quantizer.lookup(code.ids)
    assert code.z.dtype == rows.dtype == torch.float16
    torch.testing.assert_close(code.z, rows, atol=5e-3, rtol=0)


BAD = {
    "vocab is 1; give 2 or more": UNIT | {"vocab": 1},
    "decay is 1; give a fraction": UNIT | {"decay": 1.0},
    "restart is 2; give a fraction": UNIT | {"restart": 2.0},
    "entropy_temperature is 0; give a number above 0": UNIT | {"entropy_temperature": 0.0},
    "sampling_temperature is -1; give 0 or more": UNIT | {"sampling_temperature": -1.0},
    "levels.1. is 1; give 2 or more": GRID | {"levels": [8, 1]},
    "too many to number": GRID | {"levels": [8] * 21},
    "bits is 63; give a number from 1 to 62": BITS | {"bits": 63},
    "group is 0; give a number from 1 to 20": BITS | {"group": 0},
    "gaussian has no ids": {"kind": "product", "bottleneck": {"kind": "gaussian", "dim": 2}, "codebooks": 2},
    "codebooks is 0; give 1 or more": {"kind": "product", "bottleneck": BITS, "codebooks": 0},
    "scale is 0; give a fraction, above 0": {
        "kind": "residual",
        "bottleneck": BITS,
        "codebooks": 2,
        "scale": 0.0,
    },
    "bottlenecks.bottleneck: binary has no argument 'bit'": NODES["product"] | {"bottleneck": BITS | {"bit": 3}},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_settings_are_refused_in_one_line(message):
    with pytest.raises(ValueError, match=message) as error:
        components.build("bottlenecks", BAD[message])
    assert "\n" not in str(error.value)


# ---- closed forms, and terms that push the right way


@pytest.mark.parametrize("name", ["euclid", "bits", "residual", "residual_bits", "shared"])
def test_the_gradient_of_the_code_goes_to_the_features_once(name):
    quantizer = build(NODES[name])
    h = features(quantizer)
    g = torch.randn(6, 20, quantizer.dim, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(torch.autograd.grad((quantizer(h)[0].z * g).sum(), h)[0], g)


def test_every_level_of_a_residual_pulls_the_features_to_its_sum():
    quantizer = build(NODES["residual"])
    h = features(quantizer)
    code, terms = quantizer(h)
    sums = torch.stack([part.lookup(code.ids[..., k]) for k, part in enumerate(quantizer.parts)]).cumsum(0).detach()
    expected = torch.stack([(h - z).square().mean() for z in sums]).mean()
    torch.testing.assert_close(terms["commit"], expected)
    torch.testing.assert_close(torch.autograd.grad(terms["commit"], h), torch.autograd.grad(expected, h))


def test_the_parts_of_a_product_draw_apart():
    quantizer = build(NODES["product"], bottleneck=UNIT | {"sampling_temperature": 1.0})
    quantizer.parts[1].load_state_dict(quantizer.parts[0].state_dict())
    h = features(quantizer)[..., :4].repeat(1, 1, 2)
    ids = quantizer(h, draws())[0].ids
    assert (ids[..., 0] == ids[..., 1]).float().mean() < 0.4


def test_a_bit_of_zero_is_negative_and_the_first_bit_the_highest():
    quantizer = build(BITS, bits=40)
    h = torch.zeros(1, 2, 40)
    h[0, 1, 0] = h[0, 1, 39] = 1.0
    code, _ = quantizer(h)
    assert code.ids.tolist() == [[0, 2**39 + 1]] and code.z[0, 0].eq(-1).all()
    assert torch.equal(quantizer.lookup(code.ids), code.z)


def test_levels_lie_where_the_paper_puts_them():
    grid = build(GRID, levels=[3, 4])
    h = torch.tensor([-9.0, 0.0, 9.0])[None, :, None].expand(1, 3, 2)
    assert grid(h)[0].z.tolist() == [[[-1.0, -1.0], [0.0, 0.0], [1.0, 0.5]]]
    assert grid(h)[0].ids.tolist() == [[0, 1 + 3 * 2, 2 + 3 * 3]]
    assert grid.vocab == 12 and len(grid.lookup(torch.arange(12)[None])[0].unique(dim=0)) == 12
    wide = torch.linspace(-3, 3, 2000)[None, :, None].expand(1, -1, 2)
    assert [len(column.unique()) for column in grid(wide)[0].z[0].T] == [3, 4]


def test_the_entropy_of_independent_bits_adds_up():
    quantizer = build(BITS, entropy_temperature=0.7)
    h = features(quantizer).flatten(0, 1)
    p = torch.sigmoid(4 * h.double() / 0.7)
    each = -(p * p.log() + (1 - p) * (1 - p).log()).sum(-1).mean()
    codes = quantizer.lookup(torch.arange(64)[None])[0]
    mean = (2 * h @ codes.T / 0.7).softmax(-1).mean(0)
    exact = each + (mean * (mean + 1e-5).log()).sum()
    torch.testing.assert_close(quantizer.entropy(h).double(), exact, atol=1e-5, rtol=0)
    singly = build(BITS, entropy_temperature=0.7, group=1).quantize(h[None])[1]["entropy"]
    assert singly < exact  # bits taken apart have the larger entropy of the mean


def test_each_term_pulls_its_own_side_together():
    quantizer = build(EUCLID)
    h = features(quantizer)
    _, terms = quantizer(h)
    assert torch.autograd.grad(terms["vq"], h, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(terms["commit"], quantizer.codebook, allow_unused=True, retain_graph=True)[0] is None
    (towards,) = torch.autograd.grad(terms["commit"], h, retain_graph=True)
    (rows,) = torch.autograd.grad(terms["vq"], quantizer.codebook)
    assert quantizer(h - 10 * towards)[1]["commit"] < terms["commit"]
    quantizer.codebook.data -= rows
    assert quantizer(h)[1]["vq"] < terms["vq"]


@pytest.mark.parametrize("node", [UNIT | {"entropy_temperature": 0.1}, BITS, BITS | {"spherical": True}])
def test_the_entropy_term_spreads_tokens_over_the_codes(node):
    quantizer = build(node)
    h = (0.2 * features(quantizer) + 0.5).detach().requires_grad_()
    before = len(quantizer(h)[0].ids.unique())
    optimizer = torch.optim.SGD([h], lr=30.0)
    for _ in range(60):
        optimizer.zero_grad()
        quantizer(h)[1]["entropy"].backward()
        optimizer.step()
    assert len(quantizer(h)[0].ids.unique()) > 1.5 * before


def test_a_table_computed_in_parts_is_the_same_table(monkeypatch):
    def passed(quantizer: Quantizer) -> list[Tensor]:
        h = features(quantizer)
        code, terms = quantizer(h, draws())
        found = torch.autograd.grad(terms["entropy"], [h, *quantizer.parameters()])
        return [code.ids.float(), terms["entropy"].detach(), *found]

    for node in (UNIT | {"entropy_temperature": 0.1, "sampling_temperature": 0.1}, BITS):
        whole = passed(build(node))
        monkeypatch.setattr(entropy, "AT_ONCE", 24 * 7)
        torch.testing.assert_close(passed(build(node)), whole, atol=1e-6, rtol=1e-5)
        monkeypatch.undo()


def test_rows_are_drawn_as_often_as_their_distance_says():
    quantizer = build(EUCLID, vocab=5, sampling_temperature=0.8)
    h = torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(5)).expand(40, 500, 4)
    ids = quantizer(h, draws(batch=40, places=slice(0, 40)))[0].ids
    shares = torch.bincount(ids.flatten(), minlength=5) / ids.numel()
    expected = (-(h[0, :1] - quantizer.codebook).square().sum(-1) / 0.8).softmax(-1).detach()
    assert (shares - expected).abs().max() < 0.015


# ---- codebooks that move by themselves


def test_sums_by_cluster_and_k_means():
    points = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(7, (300,), generator=torch.Generator().manual_seed(1)) % 5
    counts, sums = cluster_sums(points, ids, 7)
    torch.testing.assert_close(sums, torch.zeros(7, 3).index_add_(0, ids, points))
    assert counts.tolist() == torch.bincount(ids, minlength=7).tolist()
    spots = 10 * torch.eye(3)[ids % 3] + 0.1 * points
    centres = k_means(spots, torch.stack([spots[ids % 3 == k][0] for k in range(3)]), 3)
    torch.testing.assert_close(centres, torch.stack([spots[ids % 3 == k].mean(0) for k in range(3)]))
    lost = torch.cat([centres, torch.full((1, 3), 99.0)])
    assert torch.equal(k_means(spots, lost, 2)[3], lost[3])  # nothing is near it; it stays


@pytest.mark.parametrize("unit_norm", [True, False])
def test_k_means_starts_from_the_batch_whatever_the_codebook_was(unit_norm):
    first, second = (build(UNIT, start="kmeans", unit_norm=unit_norm) for _ in range(2))
    second.codebook.data.mul_(3).add_(1)
    h = features(first) + 5
    for quantizer in (first, second):
        quantizer(h, draws())
    assert torch.equal(first.codebook, second.codebook) and first.started
    latents = first.latents(h).detach().flatten(0, 1)
    assert torch.cdist(first.rows(), latents).min(1).values.max() < torch.cdist(latents, latents).max() / 3
    random = build(UNIT, unit_norm=unit_norm)
    assert first(h)[1]["commit"] < 0.3 * random(h)[1]["commit"]
    before = first.codebook.clone()
    first(h + 9, draws(1))
    assert torch.equal(first.codebook, before)  # it starts once


def test_dead_rows_restart_at_latents_of_the_batch_chosen_by_the_draws():
    def restarted(step: int, batches: int = 4) -> VectorQuantize:
        quantizer = build(EUCLID, restart=0.2, decay=0.5)
        quantizer.codebook.data[8:] += 100  # far from everything
        for number in range(batches):
            quantizer(features(quantizer, seed=number), draws(step + number))
        return quantizer

    young = restarted(0, 2)
    assert not young.placed.any()  # a row has time to be found
    young(features(young, seed=2), draws(2))
    assert young.placed[8:].all() and (young.counts[8:] == 6 * 20 / 24).all()

    quantizer = restarted(0)
    dead = quantizer.placed > 0
    assert dead[8:].all() and not dead[:6].any()
    batches = torch.cat([features(quantizer, seed=number).detach().flatten(0, 1) for number in range(4)])
    assert (torch.cdist(quantizer.codebook[dead], batches).min(1).values < 1e-5).all()
    assert len(quantizer(features(quantizer, count=30))[0].ids.unique()) > 20
    assert torch.equal(restarted(0).codebook, quantizer.codebook)
    assert not torch.equal(restarted(9).codebook, quantizer.codebook)


def test_the_average_copies_restarted_rows():
    quantizer = build(EUCLID, start="kmeans", restart=0.2, decay=0.5)
    average = Average(quantizer, decay=0.999)
    for step in range(1, 200):
        average.update(quantizer, step)  # long before its start, so that the average has become slow
    quantizer(features(quantizer), draws())
    average.update(quantizer, 200)
    assert torch.equal(average.module.codebook, quantizer.codebook.detach())
    quantizer.codebook.data[0] += 1
    quantizer.codebook.data[1] += 1
    quantizer.placed[1] += 1
    average.update(quantizer, 10**6)
    moved = average.module.codebook - quantizer.codebook.detach()
    torch.testing.assert_close(moved[0], torch.full((4,), -0.999))
    assert (moved[1:] == 0).all() and torch.equal(average.module.placed, quantizer.placed)


def test_a_batch_that_is_not_finite_leaves_the_codebook_as_it_is():
    quantizer = build(EUCLID, learn="ema", restart=0.5)
    quantizer(features(quantizer), draws())
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer(features(quantizer) * torch.tensor(float("nan")), draws(1))
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


def state(averages: torch.nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in averages.state_dict().values()])


def test_accumulation_and_resuming_train_the_same_codebooks(tmp_path):
    whole = fit(tmp_path / "whole")
    assert all(neck.placed.sum() > 0 for neck in (whole.necks["unit"], whole.necks["ema"]))
    torch.testing.assert_close(state(fit(tmp_path / "parts", accumulate=4)), state(whole), atol=1e-5, rtol=0)
    every_neck = NECKS | IN_ONE_BATCH
    straight = fit(tmp_path / "straight", every_neck, poison=(4,))
    fit(tmp_path / "again", every_neck, poison=(4,), steps=7, save_every=7)
    assert torch.equal(state(fit(tmp_path / "again", every_neck, poison=(4,))), state(straight))
    assert state(straight).isfinite().all()


def test_two_processes_train_the_same_codebooks_as_one(tmp_path):
    script = Path(__file__).parents[1].joinpath("support", "codebook_task.py")
    for process in start_two(script, tmp_path, log=tmp_path / "log"):
        process.finish()
    ranks = [torch.load(tmp_path / f"average_{rank}.pt", weights_only=True) for rank in (0, 1)]
    one = fit(tmp_path / "one", NECKS | IN_ONE_BATCH).state_dict()
    for name, value in one.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(
            ranks[0][name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
