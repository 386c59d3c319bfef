"""Losses that compare images: closed forms, the metric that one of them is, and where their gradients go."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.checks.tokenizer import check_tokenizer
from pipeline.code import Code
from pipeline.components import build
from pipeline.frozen.networks import check_extractor
from pipeline.losses.base import Loss
from pipeline.losses.feature_perceptual import FeaturePerceptual
from pipeline.losses.pixel import Pixel
from pipeline.losses.structural_similarity import StructuralSimilarity
from pipeline.metrics.ssim import ssim
from pipeline.recipes.schema import load
from pipeline.teachers.base import Tap
from pipeline.teachers.classifier import Classifier
from pipeline.tokenizers.base import TokenizerOutput


def images(seed: int = 0, side: int = 16) -> Tensor:
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def value(loss: Loss, made: Tensor, aims: Tensor) -> Tensor:
    (name,) = loss.terms
    return loss(aims, TokenizerOutput(made, Code(), {}))[name]


def tap(*indices: int) -> Tap:
    torch.manual_seed(3)
    return Tap(Classifier(num_classes=3, width=8), *indices)


def test_smooth_l1_is_half_the_square_of_what_is_small_and_l1_less_a_half_of_what_is_large():
    a, b = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    torch.testing.assert_close(value(Pixel("smooth_l1"), a, b), torch.tensor(0.125))
    torch.testing.assert_close(value(Pixel("smooth_l1"), -b, 2 * b), torch.tensor(1.0))


def test_charbonnier_is_l1_with_a_smooth_bottom():
    a, b = images(0), images(1)
    exact = ((a - b).square() + 0.2**2).sqrt().mean()
    torch.testing.assert_close(value(Pixel("charbonnier", 0.2), a, b), exact)
    assert value(Pixel("charbonnier"), a, a).item() == pytest.approx(1e-3)
    torch.testing.assert_close(value(Pixel("charbonnier", 1e-7), a, b), value(Pixel("l1"), a, b))
    made = b.clone().requires_grad_()
    value(Pixel("charbonnier"), made, b).backward()
    assert (made.grad == 0).all()  # where l1 has a corner
    with pytest.raises(ValueError, match="epsilon is 0; give a number above 0"):
        Pixel("charbonnier", 0.0)


@pytest.mark.parametrize("side", [7, 16, 24])
def test_structural_similarity_is_one_less_the_metric(side):
    a, b = images(0, side), images(1, side)
    b = a + 0.4 * b
    expected = 1 - ssim((a + 1) * 127.5, (b + 1) * 127.5).mean()
    assert value(StructuralSimilarity(), a, b).item() == pytest.approx(expected.item(), abs=1e-5)
    assert value(StructuralSimilarity(), a, a).item() == pytest.approx(0, abs=1e-6)


def test_structural_similarity_is_exact_under_half_precision_too():
    a, b = images(0), images(0) + 0.05 * images(1)
    with torch.autocast("cpu", torch.bfloat16):
        found = value(StructuralSimilarity(), a, b)
    assert torch.equal(found, value(StructuralSimilarity(), a, b))


@pytest.mark.parametrize(
    "loss", [Pixel("charbonnier"), StructuralSimilarity(), FeaturePerceptual(tap(0, -1))], ids=lambda loss: loss.terms
)
def test_each_leads_to_the_image_and_moves_nothing_else(loss):
    loss.train()
    aims = images(0)
    made = (aims + 0.3 * images(1)).requires_grad_()
    before = value(loss, made, aims)
    before.backward()
    assert all(p.grad is None and not p.requires_grad for p in loss.parameters())
    assert not any(part.training for part in loss.modules() if isinstance(part, Classifier))
    downhill = made.detach() - 1e-2 * made.grad / made.grad.norm()
    assert value(loss, downhill, aims) < before


def test_feature_perceptual_by_hand():
    a, b, both = images(0), images(1), tap(0, -1)
    found = []
    for index in (0, 2):
        first, second = both.teacher.maps(a)[index], both.teacher.maps(b)[index]
        cosine = torch.cosine_similarity(first, second, dim=1).mean()
        found.append((2 * (1 - cosine) / first.shape[1], cosine))
    loss = FeaturePerceptual(both)
    torch.testing.assert_close(value(loss, a, b), (found[0][0] + found[1][0]) / 2, atol=1e-6, rtol=1e-4)
    cosine = loss.metrics["perceptual_cosine_classifier"]
    torch.testing.assert_close(cosine, (found[0][1] + found[1][1]) / 2, atol=1e-5, rtol=1e-4)
    assert value(loss, a, a).item() == 0
    one = FeaturePerceptual(tap(-1))
    torch.testing.assert_close(value(one, a, b), found[1][0], atol=1e-6, rtol=1e-4)


def test_a_perceptual_teacher_is_built_for_any_code_and_any_part_and_checked_at_load():
    losses = "tokenizer.phases.main.losses.features"
    node = [f"{losses}={{kind: feature_perceptual, teacher: classifier, layers: [0, -1]}}"]
    node += ["tokenizer.phases.main.weights.feature_perceptual=10"]
    check_tokenizer(load("digits", [*node, "tokenizer.phases.main.train=decoder"]))
    check_tokenizer(load("digits_titok_dit", node))
    with pytest.raises(ValueError, match=f"^{losses}: layer 5 is asked for; the classifier's are 0 to"):
        check_tokenizer(load("digits", [*node, f"{losses}.layers=[0, 5]"]))
    with pytest.raises(ValueError, match="^teacher: 'nothing at all' is no folder"):
        check_extractor(load("digits"), "losses", {"kind": "feature_perceptual", "teacher": "nothing at all"})
    built = build(
        "losses", {"kind": "feature_perceptual", "teacher": "classifier"}, extractor=tap(), dim=3, grid=[4, 4]
    )
    assert built.name == "classifier" and math.isfinite(value(built, images(0), images(1)))
