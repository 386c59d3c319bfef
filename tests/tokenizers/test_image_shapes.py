"""Tokenizers of images that are no RGB squares: every kind takes grey and RGBA, and rectangles either way."""

import json

import contracts
import pytest
import torch
from contracts import examples
from diffusers import AutoencoderKL
from torch import Tensor, nn

from pipeline.code import LatentSpec
from pipeline.components import Node, build

SHAPES = {"tall grey": (1, 2, 1), "wide RGBA": (4, 1, 2)}  # channels, and sides as multiples
KINDS = pytest.mark.parametrize("node", examples("tokenizers").values(), ids=examples("tokenizers"))


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> dict[int, str]:
    """Folders of stock autoencoders, by the channels of their images."""
    folders = {}
    for channels in (1, 3, 4):
        folders[channels] = str(tmp_path_factory.mktemp("stock"))
        sizes = {"latent_channels": 4, "block_out_channels": (8,) * 4, "norm_num_groups": 4}
        AutoencoderKL(channels, channels, **sizes).save_pretrained(folders[channels])
    return folders


def built(node: Node, image_size: int | list[int], channels: int, stock: dict[int, str]) -> nn.Module:
    node = {"kind": node["kind"], "path": stock[channels]} if "path" in node else node
    derived = contracts.derived_of(node, 0) | {"image_size": image_size, "image_channels": channels}
    return build("tokenizers", node, **derived)


def images_of(shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


@KINDS
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_tokenizers_take_images_of_any_shape(node, shape, stock, tmp_path):
    size = contracts.size_for(node)
    shape = (shape[0], shape[1] * size, shape[2] * size)
    if node.get("bottleneck", {}).get("kind") in ("multi_scale", "scale_by_scale"):
        with pytest.raises(ValueError, match="give sides of square maps"):
            built(node, list(shape[1:]), shape[0], stock)
        return
    tokenizer = built(node, list(shape[1:]), shape[0], stock)
    square, images = built(node, size, 3, stock).spec, images_of(shape)
    assert tokenizer.image_shape == shape
    if len(square.grid) == 2:
        rows, columns = (shape[1] * square.grid[0] // size, shape[2] * square.grid[1] // size)
        assert tokenizer.spec == LatentSpec((rows, columns), square.dim, square.vocab, square.codebooks)
    train_one_step(tokenizer, images)

    with torch.no_grad():
        captions = contracts.captions_for(tokenizer, 2)
        code = tokenizer.eval().encode(images, captions)
        decoded = tokenizer.decode(code, captions)
    assert len(code) == 2 and decoded.shape == images.shape and decoded.isfinite().all()
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert loaded.image_shape == shape and loaded.spec == tokenizer.spec
    with torch.no_grad():
        assert torch.equal(loaded.eval().decode(code, captions), decoded)


def train_one_step(tokenizer: nn.Module, images: Tensor) -> None:
    """All gradients are finite, and what is trained moves."""
    parameters = [parameter for parameter in tokenizer.parameters() if parameter.requires_grad]
    if not parameters:  # a stock autoencoder, which nothing trains
        return
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    contracts.total(tokenizer.train(), images, contracts.draws(2)).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in parameters)
    optimizer.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, parameters))
    with torch.no_grad():
        for old, new in zip(before, parameters):
            new.copy_(old)


@KINDS
def test_a_square_is_the_same_as_a_number_and_as_two_sides(node, stock):
    size = contracts.size_for(node)
    one, other = (built(node, sides, 3, stock) for sides in (size, [size, size]))
    other.load_state_dict(one.state_dict())
    assert one.spec == other.spec and one.image_shape == other.image_shape == (3, size, size)
    images = images_of((3, size, size))
    with torch.no_grad():
        captions = contracts.captions_for(one, 2)
        code = one.eval().encode(images, captions)
        assert torch.equal(other.eval().decode(code, captions), one.decode(code, captions))


@KINDS
def test_sides_that_do_not_fit_are_refused_in_one_line(node, stock):
    size = contracts.size_for(node)
    with pytest.raises(ValueError) as caught:
        built(node, [size, size + 1], 3, stock)
    assert "\n" not in str(caught.value) and f"{size}x{size + 1}" in str(caught.value)


def test_folders_from_before_have_rgb_squares(tmp_path):
    tokenizer = build("tokenizers", examples("tokenizers")["digits_kl"], image_size=16)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["image_size"], config.pop("image_channels")) == (16, 3)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(tokenizer).from_pretrained(tmp_path).image_shape == (3, 16, 16)


def test_a_pyramid_refuses_sides_whose_code_does_not_fold():
    with pytest.raises(ValueError, match="reads a code of 2, which 4x5 do not fold to"):
        build("tokenizers", examples("tokenizers")["digits_vfmvae"], image_size=[32, 40])
