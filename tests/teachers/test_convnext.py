"""ConvNeXt-S: torchvision's weights in transformers' module give what the paper's blocks give."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses.logit_distance import LogitDistance
from pipeline.teachers.convnext import ConvNext
from pipeline.tokenizers.base import TokenizerOutput
from pipeline.vision.backbone import IMAGENET

DEPTHS, WIDTHS, CLASSES = (2, 1), (6, 10), 7


def published_state() -> dict[str, Tensor]:
    """A state under torchvision's names, with every value drawn."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"features.0.0": (WIDTHS[0], 3, 4, 4), "features.0.1": (WIDTHS[0],)}
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS)):
        if stage:
            shapes |= {f"features.{2 * stage}.0": (WIDTHS[stage - 1],)}
            shapes |= {f"features.{2 * stage}.1": (width, WIDTHS[stage - 1], 2, 2)}
        for block in (f"features.{2 * stage + 1}.{i}.block" for i in range(depth)):
            shapes |= {f"{block}.0": (width, 1, 7, 7), f"{block}.2": (width,)}
            shapes |= {f"{block}.3": (4 * width, width), f"{block}.5": (width, 4 * width)}
    shapes |= {"classifier.0": (WIDTHS[-1],), "classifier.2": (CLASSES, WIDTHS[-1])}
    draw = lambda *shape: torch.randn(shape, generator=generator) * 0.3  # noqa: E731
    state = {f"{name}.weight": draw(*shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": draw(shape[0]) for name, shape in shapes.items()}
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS)):
        state |= {f"features.{2 * stage + 1}.{i}.layer_scale": draw(width, 1, 1) for i in range(depth)}
    return state


def by_hand(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Logits, written with maps [B, C, h, w] throughout: Liu et al., arXiv:2201.03545, section 2 and figure 4."""

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(dim=1, keepdim=True)
        x = x / (x.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
        return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def linear(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"][:, :, None, None], state[f"{name}.bias"])

    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    images = F.interpolate(images, 224, mode="bilinear", antialias=True)
    x = F.conv2d(((images + 1) / 2 - mean) / std, state["features.0.0.weight"], state["features.0.0.bias"], 4)
    x = norm(x, "features.0.1")
    for stage, depth in enumerate(DEPTHS):
        if stage:
            name = f"features.{2 * stage}"
            x = F.conv2d(norm(x, f"{name}.0"), state[f"{name}.1.weight"], state[f"{name}.1.bias"], 2)
        for i in range(depth):
            name = f"features.{2 * stage + 1}.{i}"
            weight, bias = (state[f"{name}.block.0.{kind}"] for kind in ("weight", "bias"))
            h = norm(F.conv2d(x, weight, bias, padding=3, groups=len(weight)), f"{name}.block.2")
            h = linear(F.gelu(linear(h, f"{name}.block.3")), f"{name}.block.5")
            x = x + state[f"{name}.layer_scale"] * h
    x = norm(x.mean(dim=(2, 3), keepdim=True), "classifier.0")
    return linear(x, "classifier.2")[:, :, 0, 0]


def test_torchvision_s_weights_give_the_published_logits():
    state, images = published_state(), torch.rand(2, 3, 32, 40) * 2 - 1
    network = ConvNext.from_state(state)
    assert not any(p.requires_grad for p in network.parameters()) and not network.training
    torch.testing.assert_close(network(images), by_hand(state, images), atol=1e-4, rtol=1e-4)


def test_the_distance_is_of_logits_and_has_a_gradient_at_the_image():
    network = ConvNext.from_state(published_state())
    images, rebuilt = (torch.rand(2, 3, 32, 32) * 2 - 1 for _ in range(2))
    rebuilt.requires_grad_()
    (value,) = LogitDistance(network)(images, TokenizerOutput(rebuilt, None, {})).values()
    expected = (network(images) - network(rebuilt)).square().mean()
    torch.testing.assert_close(value, expected)
    assert torch.autograd.grad(value, rebuilt)[0].abs().sum() > 0


def test_files_that_are_no_convnext_are_one_line(tmp_path):
    for change, words in (
        ({"features.9.0.block.1.weight": torch.ones(3)}, "has no weight features.9.0.block.1.weight"),
        ({"features.3.0.block.5.bias": None}, "not the weights of a ConvNeXt, for example convnext.encoder.stages.1"),
        ({"classifier.2.bias": None}, "no weights of torchvision's ConvNeXt"),
    ):
        state = {name: value for name, value in (published_state() | change).items() if value is not None}
        with pytest.raises(ValueError, match=words):
            ConvNext.from_state(state)
    torch.save(published_state(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is not the published convnext_small"):
        ConvNext.load(tmp_path / "other.pth")
