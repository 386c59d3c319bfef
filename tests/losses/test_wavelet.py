"""The Haar transform and the loss in its bands: inverse, closed forms, and gradients that stay in their band."""

import pytest
import torch
from torch import Tensor

from pipeline.code import Code
from pipeline.losses.wavelet import Wavelet
from pipeline.nn.haar import haar, inverse_haar
from pipeline.tokenizers.base import TokenizerOutput


def terms(images: Tensor, made: Tensor, norm: str = "l1") -> dict[str, Tensor]:
    return Wavelet(norm)(images, TokenizerOutput(made, Code(z=None), {}))


def test_the_inverse_gives_the_image_back_and_the_transform_the_bands():
    images, bands = torch.randn(2, 3, 8, 6), torch.randn(2, 4, 5, 3, 2)
    torch.testing.assert_close(inverse_haar(haar(images)), images)
    torch.testing.assert_close(haar(inverse_haar(bands)), bands)
    odd = torch.randn(1, 2, 5, 7)
    whole = inverse_haar(haar(odd))
    torch.testing.assert_close(whole[..., :5, :7], odd)
    torch.testing.assert_close(whole[..., 5:, :], torch.zeros(1, 2, 1, 8), atol=1e-6, rtol=0)


def test_the_low_band_is_twice_the_mean_and_every_band_its_direction():
    images = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(haar(images)[:, 0] / 2, torch.nn.functional.avg_pool2d(images, 2))
    across = torch.tensor([1.0, -1.0]).repeat(2).expand(1, 1, 4, 4)
    found = [float(band.abs().max()) for band in haar(across)[0]]
    assert found == [0, 0, 2, 0] and haar(across.mT)[0, 1].abs().min() == 2
    checks = across * across.mT
    assert haar(checks)[0, 3].abs().min() == 2 and haar(checks)[0, :3].abs().max() == 0


def test_squared_errors_add_up_to_that_of_the_pixels():
    images, made = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    found = terms(images, made, "l2")
    torch.testing.assert_close(
        found["wavelet_low"] + 3 * found["wavelet_high"], (made - images).square().mean(), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("norm, size", [("l1", 0.3), ("l2", 0.09)])
def test_each_term_sees_its_own_band_alone(norm, size):
    images = torch.rand(2, 3, 8, 8)
    brighter = terms(images, images + 0.3, norm)
    assert brighter["wavelet_low"].item() == pytest.approx(size, rel=1e-4) and brighter["wavelet_high"] < 1e-6
    stripes = 0.3 * torch.tensor([1.0, -1.0]).repeat(4).expand(2, 3, 8, 8)
    striped = terms(images, images + stripes, norm)
    assert striped["wavelet_low"] < 1e-6 and striped["wavelet_high"].item() == pytest.approx(size / 3, rel=1e-4)
    assert tuple(striped) == Wavelet.terms


def test_the_gradient_of_a_term_lies_wholly_in_its_band():
    bands = torch.randn(1, 4, 3, 4, 4, requires_grad=True)
    for number, name in enumerate(Wavelet.terms):
        term = terms(torch.rand(1, 3, 8, 8), inverse_haar(bands), "l1")[name]
        (found,) = torch.autograd.grad(term, bands)
        here, elsewhere = (found[:, :1], found[:, 1:])[:: 1 - 2 * number]
        assert (here != 0).all() and elsewhere.abs().max() < 1e-6 * here.abs().max(), name


def test_it_pushes_the_right_way_at_any_channels():
    images, made = torch.rand(1, 9, 6, 6), torch.rand(1, 9, 6, 6).requires_grad_()
    sum(terms(images, made).values()).backward()
    with torch.no_grad():
        better = made - 0.5 * made.grad
    assert sum(terms(images, better).values()) < sum(terms(images, made).values())
