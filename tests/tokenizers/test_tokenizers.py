"""Tokenizers: unit scale out and in, geometry, the posterior, and saving whole."""

import shutil

import pytest
import torch
from diffusers import AutoencoderKL, ModelMixin, VQModel
from support.fresh_process import answers_of_saved
from support.stock_autoencoders import SIZE, STOCK
from torch import Tensor

from pipeline.bottlenecks.gaussian import Gaussian
from pipeline.code import Code, LatentSpec
from pipeline.components import Arguments
from pipeline.draws import GivenDraws, StepDraws
from pipeline.nn.convolution import run_tiled
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.tokenizers.pretrained import Pretrained


def conv(**changes) -> ConvAutoencoder:
    arguments = {"bottleneck": {"kind": "gaussian", "dim": 3}, "width": 8, "multipliers": [1, 2], "blocks": 1}
    return ConvAutoencoder(image_size=SIZE, **(arguments | changes)).eval()


def scaled(tokenizer):
    """With statistics that are not those of unit scale."""
    tokenizer.mean.copy_(torch.randn_like(tokenizer.mean))
    tokenizer.std.copy_(torch.rand_like(tokenizer.std) + 0.5)
    return tokenizer


def pictures(count: int = 2, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.rand(count, 3, height, width) * 2 - 1


@pytest.fixture(params=["conv", *STOCK])
def tokenizer(request, tmp_path):
    if request.param == "conv":
        return scaled(conv())
    STOCK[request.param]().save_pretrained(tmp_path / "stock")
    return scaled(Pretrained(SIZE, str(tmp_path / "stock")))


@torch.no_grad()
def test_codes_are_at_unit_scale_outside_and_decoding_undoes_it(tokenizer):
    images = pictures()
    code = tokenizer.encode(images)
    own, _ = tokenizer.neck(tokenizer.features(images))
    assert code.z.shape == (2, *tokenizer.spec.shape)
    torch.testing.assert_close(code.z * tokenizer.std + tokenizer.mean, own.z)
    torch.testing.assert_close(tokenizer.decode(code), tokenizer.render(own.z), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokenizer(images).images, tokenizer.render(own.z), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_statistics_measured_on_codes_bring_them_to_zero_mean_and_unit_std():
    tokenizer = conv()
    images = pictures(16)
    z = tokenizer.encode(images).z
    tokenizer.mean.copy_(z.mean((0, 1)))
    tokenizer.std.copy_(z.std((0, 1)))
    after = tokenizer.encode(images).z
    torch.testing.assert_close(after.mean((0, 1)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std((0, 1)), torch.ones(3), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", STOCK)
def test_pretrained_is_the_stock_autoencoder(kind, tmp_path):
    stock = STOCK[kind]().eval()
    stock.save_pretrained(tmp_path)
    images = pictures()
    if kind == "rae":  # its pixels are in [0, 1]
        expected = stock((images + 1) / 2).sample * 2 - 1
    elif kind == "tiny":  # its `forward` also rounds to bytes
        expected = stock.decode(stock.encode(images).latents).sample
    else:
        expected = stock(images).sample
    ours = Pretrained(SIZE, str(tmp_path))
    torch.testing.assert_close(ours(images).images, expected, atol=1e-4, rtol=1e-4)
    assert not any(p.requires_grad for p in ours.parameters())
    assert ours.last_layer.shape[0] in (3, 4 * 4 * 3)
    assert not ours.train().autoencoder.training


@torch.no_grad()
def test_saved_folders_are_whole_in_a_fresh_process_without_the_originals(tmp_path):
    """From another folder, equal to the bit."""
    tokenizers, images = {"conv": scaled(conv(attention=[1]))}, pictures()
    for kind in STOCK:
        STOCK[kind]().save_pretrained(tmp_path / "stock")
        tokenizers[kind] = scaled(Pretrained(SIZE, str(tmp_path / "stock")))
        shutil.rmtree(tmp_path / "stock")
    calls = {f"{kind}_rebuilds": (tokenizer.forward, images) for kind, tokenizer in tokenizers.items()}
    calls |= {f"{kind}_encodes": (tokenizer.encode, images) for kind, tokenizer in tokenizers.items()}
    answers = answers_of_saved(tmp_path, calls)
    for kind, tokenizer in tokenizers.items():
        assert torch.equal(answers[f"{kind}_rebuilds"].images, tokenizer(images).images), kind
        assert torch.equal(answers[f"{kind}_encodes"].z, tokenizer.encode(images).z), kind


def test_no_class_of_diffusers_loads_a_folder_of_ours(tmp_path):
    """It would only warn that no weight of it is there, and be random."""
    conv().save_pretrained(tmp_path)
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model"):
        AutoencoderKL.from_pretrained(tmp_path)
    assert isinstance(ConvAutoencoder.from_pretrained(tmp_path), ConvAutoencoder)


def geometry(cls: type, **given) -> LatentSpec:
    return cls.geometry(Arguments.complete(cls, {"image_size": SIZE} | given))


def test_pretrained_needs_dim_and_stride_only_where_it_cannot_look(tmp_path):
    STOCK["kl"]().save_pretrained(tmp_path / "pipe" / "vae")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    folder = {"path": str(tmp_path / "pipe"), "subfolder": "vae"}
    assert geometry(Pretrained, **folder) == LatentSpec((8, 8), 3)
    assert geometry(Pretrained, path="some/hub-id", dim=4, stride=8) == LatentSpec((2, 2), 4)
    for arguments, words in (
        ({"path": "some/hub-id"}, "state dim"),
        ({"path": str(tmp_path / "pipe")}, "set subfolder"),
        (folder | {"dim": 4}, "states dim=4, but that of .* is 3"),
        (folder | {"stride": 8}, "states stride=8, but that of .* is 2"),
        ({"path": "some/hub-id", "dim": 4, "stride": 5}, "do not divide"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            geometry(Pretrained, **arguments)
        assert "\n" not in str(caught.value)


def test_pretrained_refuses_codebooks(tmp_path):
    VQModel().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="codes are ids"):
        geometry(Pretrained, path=str(tmp_path))


def test_pretrained_on_meta_reads_no_weights(tmp_path):
    STOCK["kl"]().save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with torch.device("meta"):
        assert Pretrained(SIZE, str(tmp_path)).last_layer.is_meta


def test_geometry_is_known_without_building():
    arguments = {"bottleneck": {"kind": "gaussian", "dim": 3}, "multipliers": [1, 2, 2]}
    assert geometry(ConvAutoencoder, **arguments, image_size=32, width=8) == LatentSpec((8, 8), 3)
    assert ConvAutoencoder.terms(Arguments.complete(ConvAutoencoder, arguments)) == ("kl",)
    for changes, size, words in (
        ({}, 30, "do not divide by 4.*data.size=32"),
        ({"attention": [3]}, 32, "level 3; the levels are 0 to 2"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            geometry(ConvAutoencoder, image_size=size, **(arguments | changes))
        assert "\n" not in str(caught.value)


@torch.no_grad()
def test_any_sides_that_the_stride_divides():
    tokenizer = scaled(conv(attention=[1]))
    images = pictures(1, 8, 20)
    assert tokenizer(images).images.shape == images.shape
    code = tokenizer.encode(images)
    torch.testing.assert_close(tokenizer.decode(code, grid=(4, 10)), tokenizer(images).images, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"state grid=\(h, w\)"):
        tokenizer.decode(code)
    with pytest.raises(ValueError, match="8x19 pixels do not divide"):
        tokenizer.encode(pictures(1, 8, 19))


@torch.no_grad()
@pytest.mark.parametrize("width, groups", [(6, 32), (24, 32), (8, 4)])
def test_groups_fit_every_width(width, groups):
    assert conv(width=width, groups=groups, decoder_width=width * 2, z_channels=5)(pictures()).images.isfinite().all()


@torch.no_grad()
def test_slices_are_the_batch_and_memory_formats_agree():
    tokenizer, images = conv(), pictures(3)
    whole = tokenizer(images).images
    tokenizer.enable_slicing()
    torch.testing.assert_close(tokenizer(images).images, whole, atol=1e-5, rtol=1e-4)
    tokenizer.disable_slicing()
    tokenizer.to(memory_format=torch.channels_last)
    made = tokenizer(images.to(memory_format=torch.channels_last)).images
    torch.testing.assert_close(made, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (28, 64)])
def test_tiles_blend_to_the_whole_of_a_local_function(size):
    x = torch.randn(2, 3, *size)
    up = lambda part: part.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    down = lambda part: torch.nn.functional.avg_pool2d(part, 4)  # noqa: E731
    torch.testing.assert_close(run_tiled(up, x, (16, 16)), up(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(run_tiled(down, x, (16, 16), unit=4), down(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tiling_keeps_the_shape():
    tokenizer = conv()
    tokenizer.enable_tiling()
    images = pictures(1, 24, 40)
    assert tokenizer.features(images).shape == (1, 12 * 20, 6)
    assert tokenizer(images).images.shape == images.shape


def test_gradient_checkpointing_changes_no_gradient():
    tokenizer, images = conv(), pictures()
    tokenizer(images).images.square().sum().backward()
    plain = [p.grad.clone() for p in tokenizer.parameters()]
    tokenizer.zero_grad()
    tokenizer.enable_gradient_checkpointing()
    tokenizer(images).images.square().sum().backward()
    for grad, p in zip(plain, tokenizer.parameters()):
        torch.testing.assert_close(p.grad, grad)


def test_parts_hold_every_parameter_once(tokenizer):
    held = [p for part in ("encoder", "decoder") for p in tokenizer.trainable(part)]
    held += tokenizer.frozen_parameters()
    assert sorted(map(id, held)) == sorted(id(p) for p in tokenizer.parameters())
    assert any(p is tokenizer.last_layer for p in tokenizer.trainable("decoder"))


@torch.no_grad()
@pytest.mark.parametrize("attention", [[], [1]])
def test_the_stock_export_is_the_same_function_at_unit_scale(attention, tmp_path):
    tokenizer, images = scaled(conv(attention=attention, groups=4)), pictures()
    tokenizer.stock().model.save_pretrained(tmp_path)
    stock = AutoencoderKL.from_pretrained(tmp_path)
    posterior = stock.encode(images).latent_dist
    mean, std = tokenizer.moments(images)
    torch.testing.assert_close(posterior.mean.flatten(2).transpose(1, 2), mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(posterior.std.flatten(2).transpose(1, 2), std, atol=1e-4, rtol=1e-4)
    made = stock.decode(posterior.mean).sample
    torch.testing.assert_close(made, tokenizer.decode(Code(z=mean)), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="one width"):
        conv(decoder_width=16).stock()


def test_kl_is_zero_at_the_prior_and_known_elsewhere():
    neck = Gaussian(2)
    assert neck(torch.zeros(1, 5, 4))[1]["kl"] == 0
    h = torch.tensor([[[0.5, -1.0, 0.3, -0.7]]])  # mean 0.5, -1; log variance 0.3, -0.7
    mean, logvar = h.chunk(2, -1)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0)).mean()
    torch.testing.assert_close(neck(h)[1]["kl"], expected)


def test_the_posterior_is_sampled_when_draws_are_given_and_the_mode_otherwise():
    neck, h = Gaussian(2), torch.randn(3, 5, 4)
    mean, std = neck.moments(h)
    noise = torch.randn(3, 5, 2)
    torch.testing.assert_close(neck(h, GivenDraws({"posterior": noise}))[0].z, mean + std * noise)
    assert torch.equal(neck(h)[0].z, mean)
    wild = torch.tensor([[[0.0, 100.0], [0.0, -100.0]]])
    torch.testing.assert_close(Gaussian(1).moments(wild)[1].flatten().log() * 2, torch.tensor([20.0, -30.0]))
    drawn = neck(h, StepDraws(0, 0, slice(0, 3), 3))[0].z
    assert torch.equal(drawn, neck(h, StepDraws(0, 0, slice(0, 3), 3))[0].z) and not torch.equal(drawn, mean)


def test_submodules_do_not_hide_behind_arguments(tokenizer):
    """ModelMixin looks in the config before the submodules."""
    assert isinstance(tokenizer, ModelMixin)
    assert not {name for name, _ in tokenizer.named_children()} & set(tokenizer.config)
