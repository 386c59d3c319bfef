"""A tokenizer's card: its metrics against closed forms, and whole cards of tokenizers with ids and without."""

import json
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from metric_inputs import Geometry, measured, tokenizer_inputs
from support.tiny_pipeline import make_tokenizer
from torch import Generator, Tensor
from transformers import Dinov2Config, Dinov2Model

import run
from pipeline.code import Code, LatentSpec
from pipeline.draws import ImageDraws
from pipeline.features import judge
from pipeline.features.summaries import extremes
from pipeline.measuring.small_prior import batch_of, learn, loss_on
from pipeline.metrics.band_error import band_power
from pipeline.metrics.base import Measurement
from pipeline.metrics.channel_moments import channel_moments
from pipeline.metrics.code_size import CodeSize
from pipeline.metrics.flow_probe import FLOW_LEVELS, FlowProbe
from pipeline.metrics.ms_ssim import ms_ssim, scales
from pipeline.metrics.neighbour_alignment import equivariant_views, hsic, neighbour_alignment, turned
from pipeline.metrics.residual_spectrum import marks, radial_power
from pipeline.metrics.small_prior import NO_STRUCTURE
from pipeline.metrics.ssim import ssim
from pipeline.metrics.stability import code_cosine, ids_changed, with_noise
from pipeline.metrics.used_dimensions import used_dimensions
from pipeline.nn.haar import BANDS, haar
from pipeline.nn.id_entropy import class_information, entropy, entropy_by_position
from pipeline.nn.linear_probe import probe_accuracy, probe_attribute
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.recipes.building import build_tokenizer
from pipeline.recipes.schema import load, settings
from pipeline.runs.workspace import NOTE

SMALL = ["tokenizer.model.width=8", "tokenizer.model.groups=4", "tokenizer.model.middle_attention=false"]
SIZES = {"width": 32, "depth": 1, "heads": 2}
QUICK = ["images=40", "prior_steps=4"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def test_haar_keeps_the_energy_and_tells_directions_apart():
    images = normal(2, 3, 8, 6)
    torch.testing.assert_close(haar(images).square().sum(dim=(1, 2, 3, 4)), images.square().sum(dim=(1, 2, 3)))
    torch.testing.assert_close(band_power(images).mean(dim=1), images.square().mean(dim=(1, 2, 3)))
    columns = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 3, 8, 8)  # changes across: high, low
    found = {name: pattern for name, pattern in zip(BANDS, band_power(columns)[0].tolist())}
    assert found == {"LL": 0, "LH": 0, "HL": 4, "HH": 0}
    assert band_power(columns.mT)[0].tolist() == [0, 4, 0, 0]
    assert haar(normal(1, 3, 7, 5)).shape == (1, 4, 3, 4, 3), "odd sides"


def test_a_wave_has_its_power_at_its_frequency_and_noise_everywhere():
    wave = torch.cos(2 * math.pi * 3 * torch.arange(16) / 16).expand(1, 3, 16, 16)
    found = radial_power(wave)[0]
    assert found.shape == (9,) and found.argmax() == 3 and found[3] > 0.999 * found.sum()
    noise = radial_power(2 * normal(400, 3, 16, 16)).mean(dim=0)
    torch.testing.assert_close(noise, torch.full((9,), 4.0, dtype=torch.float64), atol=0.2, rtol=0)


def test_ms_ssim_is_one_for_equal_images_and_ssim_where_one_scale_fits():
    images = (normal(2, 3, 44, 48) * 40 + 128).clamp(0, 255)
    assert scales(44) == 3 and scales(176) == 5 and scales(16) == scales(8) == 1
    assert ms_ssim(images, images).tolist() == [1, 1]
    other = (images + normal(2, 3, 44, 48, seed=1) * 30).clamp(0, 255)
    assert (ms_ssim(images, other) < 0.999).all() and (ms_ssim(images, other) > ssim(images, other)).all()
    small = images[..., :16, :16], other[..., :16, :16]
    torch.testing.assert_close(ms_ssim(*small), ssim(*small), atol=0.02, rtol=0)  # means over channels come last
    coarse = torch.nn.functional.interpolate(normal(1, 3, 11, 11) * 40 + 128, scale_factor=4)  # nothing fine to lose
    noisy = coarse + 25 * normal(1, 3, 44, 44, seed=2)
    assert ms_ssim(coarse, noisy) > ssim(coarse, noisy) + 0.02


def test_cknna_of_a_set_and_itself_is_one_and_by_chance_the_share_of_neighbours():
    rows, other = normal(300, 12), normal(300, 20, seed=1)
    turn = torch.linalg.qr(normal(12, 12, seed=2))[0]
    assert neighbour_alignment(rows, rows) == pytest.approx(1, abs=1e-12)
    assert neighbour_alignment(rows, 3 * rows) == pytest.approx(1, abs=1e-9), "length does not count"
    assert neighbour_alignment(rows, other) == pytest.approx(10 / 299, abs=0.015), "as many as are mutual by chance"
    many = normal(1500, 12, seed=3), normal(1500, 20, seed=4)
    assert neighbour_alignment(*many) == pytest.approx(10 / 1499, abs=0.004)
    order = torch.randperm(300, generator=Generator().manual_seed(0))
    aligned = neighbour_alignment(rows, rows @ turn + 0.3 * other[:, :12])
    assert 0.1 < aligned < 0.9
    mixed = neighbour_alignment(rows[order], (rows @ turn + 0.3 * other[:, :12])[order])
    assert mixed == pytest.approx(aligned, abs=1e-9), "the order of images does not count"
    with pytest.raises(ValueError, match="more than 10 images"):
        neighbour_alignment(rows[:10], rows[:10])
    assert neighbour_alignment(torch.ones(50, 4), rows[:50]) == 0


def test_cknna_is_the_formula():
    """Entry by entry, over the pairs that are among the k nearest in both."""
    one, other, k, n = normal(14, 5), normal(14, 6, seed=1), 4, 14
    unit = [
        torch.nn.functional.normalize(r.clamp(-limit, limit)) for r, limit in ((one, top(one)), (other, top(other)))
    ]
    products = [rows @ rows.T for rows in unit]
    near = []
    for matrix in products:
        mask = torch.zeros(n, n, dtype=torch.float64)
        for i in range(n):
            ranked = sorted((j for j in range(n) if j != i), key=lambda j: -matrix[i, j])
            mask[i, ranked[:k]] = 1
        near.append(mask)

    def aligned(a: int, b: int) -> float:
        mask = near[a] * near[b]
        return hsic(entries(products[a] * mask), entries(products[b] * mask), n)

    expected = aligned(0, 1) / math.sqrt(aligned(0, 0) * aligned(1, 1))
    assert neighbour_alignment(one, other, k) == pytest.approx(expected, rel=1e-9)


def entries(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of a matrix off its diagonal that are not zero: their places, and values."""
    kernel = kernel.clone().fill_diagonal_(0).flatten()
    return kernel.nonzero()[:, 0], kernel[kernel != 0]


def top(rows: Tensor) -> float:
    return sorted(rows.abs().flatten().tolist())[round(0.95 * rows.numel()) - 1]


def test_unbiased_hsic_has_mean_nought_for_independent_kernels():
    pairs = [(normal(30, 3, seed=2 * i), normal(30, 3, seed=2 * i + 1)) for i in range(200)]
    values = torch.tensor([hsic(entries(a @ a.T), entries(b @ b.T), 30) for a, b in pairs])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(200)
    rows = normal(30, 3)
    assert hsic(entries(rows @ rows.T), entries(rows @ rows.T), 30) > 1


def test_views_are_of_the_images_and_of_their_own_draws():
    images = normal(3, 3, 16, 16).float().clamp(-1, 1)
    views = equivariant_views(images, ImageDraws.from_seeds([5, 6, 7]))
    assert list(views) == ["turned", "noise_0.05", "noise_0.1", "noise_0.15", "noise_0.2"]
    alone = equivariant_views(images[1:2], ImageDraws.from_seeds([6]))
    assert all(torch.equal(alone[name][0], views[name][1]) for name in views)
    flat = equivariant_views(torch.zeros(1, 3, 64, 64), ImageDraws.from_seeds([1]))
    assert flat["noise_0.2"].std() == pytest.approx(0.4, rel=0.05), "of the range [0, 1], which is half as wide"
    assert torch.equal(turned(images[0], 0, 1), images[0].rot90(1, dims=(1, 2)))
    shrunk = turned(torch.ones(3, 16, 16), 2, 0)
    assert shrunk.sum() == pytest.approx(3 * 64, rel=1e-4) and shrunk[:, 4:12, 4:12].min() > 0.99


def test_noise_has_the_power_that_is_stated():
    images = 0.3 * normal(2, 3, 64, 64).float() + 0.5
    added = with_noise(images, 20.0, ImageDraws.from_seeds([0, 1])) - images
    share = added.flatten(1).var(dim=1) / images.flatten(1).var(dim=1)
    torch.testing.assert_close(share, torch.full((2,), 0.01), rtol=0.05, atol=0)


def test_changes_of_codes_are_counted():
    ids = torch.tensor([[[0, 1], [2, 3]], [[0, 0], [0, 0]]])
    other = torch.tensor([[[0, 1], [2, 0]], [[0, 0], [0, 0]]])
    assert ids_changed(ids, other).tolist() == [0.25, 0]
    z = normal(2, 4, 3)
    torch.testing.assert_close(code_cosine(z, 2 * z), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(code_cosine(z, -z), -torch.ones(2, dtype=torch.float64))


def test_entropies_of_known_ids():
    assert entropy(torch.tensor([0, 1, 2, 3])) == pytest.approx(2) and entropy(torch.zeros(9)) == 0
    ids = torch.tensor([[[0, 5]], [[1, 5]], [[0, 5]], [[1, 5]]])
    assert entropy_by_position(ids).tolist() == [[pytest.approx(1), 0]]
    labels = torch.tensor([0, 1, 0, 1])
    assert class_information(ids, labels) == pytest.approx(0.5), "one bit in the first codebook, none in the second"
    assert class_information(ids, torch.tensor([0, 0, 1, 1])) == pytest.approx(0)


def test_a_probe_separates_what_is_separable_and_nothing_else():
    labels = torch.arange(300) % 3
    apart = normal(300, 6)
    apart[torch.arange(300), labels] += 8
    assert probe_accuracy(apart[:200], labels[:200], apart[200:], labels[200:]) == 1
    assert probe_accuracy(normal(300, 6)[:200], labels[:200], normal(300, 6)[200:], labels[200:]) < 0.55
    with pytest.raises(ValueError, match="two classes"):
        probe_accuracy(apart, torch.zeros(300), apart, torch.zeros(300))


def test_moments_of_known_distributions():
    z = torch.stack([normal(50, 40) * 3 + 1, torch.rand(50, 40, generator=Generator().manual_seed(0)).double()], dim=-1)
    found = channel_moments(z)
    torch.testing.assert_close(found["mean"], torch.tensor([1, 0.5]).double(), atol=0.15, rtol=0)
    torch.testing.assert_close(found["std"], torch.tensor([3, 12**-0.5]).double(), rtol=0.03, atol=0)
    torch.testing.assert_close(found["excess"], torch.tensor([0, -1.2]).double(), atol=0.2, rtol=0)
    assert used_dimensions(normal(40, 50, 8)) == pytest.approx(8, rel=0.03)
    assert used_dimensions(normal(40, 50, 1) * torch.arange(1, 5)) == pytest.approx(1)
    assert used_dimensions(torch.ones(4, 5, 3)) == 0
    assert set(extremes(torch.arange(20.0))) == {"least", "median", "most"} and len(extremes(torch.ones(3))) == 3


def test_a_code_costs_what_its_geometry_says():
    ids = size_of(LatentSpec((16, 16), 8, 1024, 2))
    assert ids["bits_per_pixel"].value == pytest.approx(256 * 20 / 256**2) and ids["dimensions"].value == 2048
    continuous = size_of(LatentSpec((32, 32), 4))
    assert continuous["bits_per_pixel"].value == pytest.approx(1024 * 4 * 16 / 256**2)
    assert marks(129) == [0, 1, 2, 4, 8, 16, 32, 64, 128] and marks(9) == [0, 1, 2, 4, 8]


def size_of(spec: LatentSpec) -> dict[str, Measurement]:
    return measured(CodeSize(), tokenizer_inputs(Geometry(spec), {}, {}, image_shape=(3, 256, 256)))


class BestOfNoise(torch.nn.Module):
    """The velocity that is expected of independent standard normal values."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, time: Tensor, condition: None) -> Tensor:
        u = time[:, None, None]
        return (2 * u - 1) / ((1 - u) ** 2 + u**2) * z


def test_the_small_prior_learns_what_there_is_to_learn(tmp_path):
    spec = LatentSpec((4,), 3, 8)
    fixed = Code(ids=(torch.arange(96)[:, None] + torch.arange(4)) % 8)  # the first id decides the others
    found = learn(fixed, fixed[::3], spec, 20, tmp_path, 0, Accelerator(cpu=True))
    assert list(found.course) == list(range(2, 21, 2)) and found.loss == min(found.course.values())
    assert math.log(8) / 4 * 0.95 < found.loss < 0.7 * math.log(8)
    assert batch_of(LatentSpec((16, 16), 8, 2**16)) == 4 and batch_of(LatentSpec((4,), 3)) == 64


def test_the_flow_loss_of_noise_is_what_the_card_says():
    noise, spec = Code(z=normal(4000, 4, 3).float()), LatentSpec((4,), 3)
    found = loss_on(noise, spec, BestOfNoise(), FlowMatching(), 0)
    assert found == pytest.approx(NO_STRUCTURE, abs=0.01)


@pytest.fixture(params=["digits", "digits_fsq_maskgit"])
def cards(request, tmp_path, monkeypatch):
    """A run in runs/ whose tokenizer is not trained, and where it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "fit", partial(judge.fit, steps=4, batch=16))
    recipe = load(request.param, SMALL)
    folder = tmp_path / "runs" / recipe.name
    (folder / "tokenizer").mkdir(parents=True)
    build_tokenizer(recipe).save_pretrained(folder / "tokenizer")
    (folder / "tokenizer" / NOTE).write_text("{}")
    (folder / "recipe.yaml").write_text(f"# configs/{recipe.name}.yaml\n{settings(recipe)}")
    return folder, bool(recipe.tokenizer.model["bottleneck"]["kind"] != "gaussian")


def test_a_card_holds_every_number_with_its_protocol(cards, capsys):
    folder, discrete = cards
    assert run.main(["card", folder.name, *QUICK]) == 0, capsys.readouterr().err
    card, page = json.loads((folder / "card/card.json").read_text()), (folder / "card/index.html").read_text()
    numbers = card["numbers"]
    both = {"psnr", "ssim", "ms_ssim", "perceptual_classifier", "rfd_classifier", "pfd_pixels", "error_HH"}
    both |= {"residual_top_octave", "dimensions", "bits_per_pixel", "cosine_again", "cosine_noise_20dB"}
    both |= {"linear_probe", "cknna", "se_cknna", "latent_std", "latent_kurtosis", "speed_encode", "speed_decode"}
    of_ids = {"code_usage", "code_perplexity", "position_entropy", "class_information", "ids_changed_again"}
    of_ids |= {"ids_changed_noise_30dB", "prior_bits"}
    assert both <= set(numbers) and (of_ids <= set(numbers)) == discrete
    assert ({"latent_kl", "prior_flow", "flow_probe"} <= set(numbers)) == (not discrete)
    assert discrete or numbers["flow_probe"]["details"]["0"] == numbers["linear_probe"]["value"], "no noise yet"
    for key, number in numbers.items():
        assert number["protocol"] and math.isfinite(number["value"]) and number["better"], key
        assert f'<data value="{number["value"]!r}">' in page, key
    assert numbers["cknna"]["protocol"]["features"]["kind"] == "classifier", "the stand-in is named"
    errors = [numbers[f"error_{band}"]["value"] for band in BANDS]
    details = numbers["error_LL"]["details"]
    assert details["share_of_the_band's_own"] == pytest.approx(errors[0] / details["mean_square_of_the_images"])
    assert numbers["se_cknna"]["value"] == pytest.approx(sum(numbers["se_cknna"]["details"].values()) / 5)
    assert not re.search(r"https?://|@import|url\(|<script|<link", page) and 'src="data:image/png;base64,' in page
    assert "| PSNR |" in (folder / "card/card.md").read_text() and not list(folder.rglob("checkpoints"))
    capsys.readouterr()
    assert run.main(["card", str(folder), *QUICK]) == 0 and "is up to date" in capsys.readouterr().out


def test_a_probe_finds_an_attribute_that_is_there_and_no_other():
    rows, new = normal(400, 6).float(), normal(200, 6, seed=1).float()
    has, new_has = rows[:, 0] + 0.2 * rows[:, 3] > 0.5, new[:, 0] + 0.2 * new[:, 3] > 0.5
    f1, accuracy = probe_attribute(rows, has, new, new_has)
    assert f1 > 0.9 and accuracy > 0.95
    rare, new_rare = normal(400, seed=2) > 1.6, normal(200, seed=3) > 1.6
    f1, accuracy = probe_attribute(rows, rare, new, new_rare)
    assert f1 < 0.2 and accuracy > 0.9, "accuracy alone would praise a probe that never says yes"
    with pytest.raises(ValueError, match="have the attribute and images that do not"):
        probe_attribute(rows, has | True, new, new_has)


def test_the_class_is_lost_along_the_flow():
    def rows(seed: int) -> dict[str, Tensor]:
        labels = torch.arange(400) % 2
        z = torch.stack([labels * 2.0 - 1, torch.zeros(400)], dim=1)[:, None]  # [400, 1, 2]
        return {"z": z, "labels": labels, "flow_noise": normal(400, 1, 2, seed=seed).float()}

    inputs = tokenizer_inputs(Geometry(LatentSpec((1,), 2)), rows(0), rows(1))
    (key, number), *others = measured(FlowProbe(), inputs).items()
    found = [number.details[f"{u:g}"] for u in FLOW_LEVELS]
    assert key == "flow_probe" and not others and number.value == pytest.approx(sum(found) / len(found))
    for u, accuracy in zip(FLOW_LEVELS, found):  # the best rule's: the sign of (1 - u) z + u e
        best = 0.5 * (1 + math.erf((1 - u) / u / math.sqrt(2))) if u else 1.0
        assert accuracy == pytest.approx(best, abs=0.06)


def test_a_card_probes_for_attributes_where_images_have_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "fit", partial(judge.fit, steps=4, batch=16))
    make_tokenizer().save_pretrained("imported")
    source = "data.source={kind: shapes, images: 120, held_out: 60, size: 16}"
    assert run.main(["card", "imported", source, "data.size=16", "images=120", "prior_steps=4"]) == 0
    numbers = json.loads(Path("imported/card/card.json").read_text())["numbers"]
    f1, accuracy = numbers["attribute_f1"], numbers["attribute_accuracy"]
    names = ["red", "green", "blue", "left", "top", "large", "dark_ground"]
    assert list(f1["details"]) == list(accuracy["details"]) == names
    assert f1["value"] == pytest.approx(sum(f1["details"].values()) / 7) and f1["details"]["dark_ground"] > 0.8
    assert f1["protocol"]["attributes"] == "mean over 7" and f1["protocol"]["probe"].startswith("softmax regression")


@pytest.mark.parametrize("kind", ["ids of no place", "a stock autoencoder"])
def test_cards_of_other_kinds_of_tokenizers(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "fit", partial(judge.fit, steps=4, batch=16))
    if kind == "ids of no place":
        recipe = load("digits_titok_maskgit", [f"tokenizer.model.{name}={value}" for name, value in SIZES.items()])
        build_tokenizer(recipe).save_pretrained("made")
    else:
        torch.manual_seed(0)
        levels = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 3}
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        AutoencoderKL(**levels, **blocks, sample_size=16).save_pretrained("made")
    assert run.main(["card", "made", "data.source.kind=digits", "data.size=16", *QUICK]) == 0, capsys.readouterr().err
    card = json.loads(Path("made/card/card.json").read_text())
    about, numbers = card["about"], card["numbers"]
    assert (about["code"]["grid"], bool(about["code"]["vocab"])) == (([16], True) if "ids" in kind else ([8, 8], False))
    both = {"psnr", "rfd_classifier", "pfd_pixels", "error_HH", "linear_probe", "cknna", "se_cknna", "cosine_again"}
    assert both | ({"prior_bits", "position_entropy"} if "ids" in kind else {"prior_flow", "latent_kl"}) <= set(numbers)
    assert all(math.isfinite(number["value"]) for number in numbers.values())


def test_a_folder_is_told_its_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "fit", partial(judge.fit, steps=4, batch=16))
    make_tokenizer().save_pretrained("imported")
    assert run.main(["card", "imported", *QUICK]) == 2
    assert "does not say of which images" in capsys.readouterr().err
    data = ["data.source.kind=digits", "data.size=16"]
    assert run.main(["card", "imported", *data[:1], "data.size=32", *QUICK]) == 2
    assert "of 16 pixels, not 32" in capsys.readouterr().err
    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    ).save_pretrained("tiny")
    assert run.main(["card", "imported", *data, *QUICK, "vision=tiny", "out=card"]) == 0
    card = json.loads(Path("card/card.json").read_text())
    assert card["numbers"]["cknna"]["protocol"]["features"]["kind"] == "tiny"
    assert card["about"]["scale"].startswith("the mean and std that are stored")
    assert run.main(["card", "nowhere"]) == 2 and "neither a run" in capsys.readouterr().err
    assert (
        run.main(["card", "imported", *data, "features=[fid]"]) == 2 and "no features 'fid'" in capsys.readouterr().err
    )
