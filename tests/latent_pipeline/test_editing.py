"""Images given to a pipeline are made anew by every family of generators: as a whole, or where a mask is white."""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_pipeline import NAMES, fails, generators, make_network, make_pipeline, randomised
from torch import Tensor

from pipeline import LatentPipeline
from pipeline.code import Code
from pipeline.editing.edit import feather
from pipeline.networks.bidirectional_transformer import BidirectionalTransformer
from pipeline.networks.causal_transformer import CausalTransformer
from pipeline.networks.next_scale_transformer import NextScaleTransformer
from pipeline.objectives.flow_matching import FlowMatching
from pipeline.objectives.gaussian_diffusion import GaussianDiffusion
from pipeline.objectives.masked_token import MaskedToken
from pipeline.objectives.next_scale import NextScale
from pipeline.objectives.next_token import NextToken
from pipeline.objectives.random_order import RandomOrder
from pipeline.samplers.arc import arc
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.tokenizers.titok import TiTok

FSQ = {"kind": "finite_scalar", "levels": [4, 3]}
SIZES = {"depth": 2, "width": 32, "heads": 2}
FAMILIES = {
    "flow": {},
    "flow_heun": {"solver": "heun"},
    "flow_sde": {"solver": "sde"},
    "diffusion": {},
    "diffusion_ddim": {"solver": "ddim"},
    "masked": {},
    "masked_halton": {"order": "halton"},
    "next_token": {},
    "random_order": {"order": "random"},
    "levels": {},
}
every_family = pytest.mark.parametrize("family", FAMILIES)
LABELS, SEEDS = [1, 2, 0], (5, 6, 7)


@cache
def pipeline_of(family: str) -> LatentPipeline:
    """16 pixels, 4x4 tokens, four classes, a guidance scale of 2."""
    name, settings = family.partition("_")[0], {"guidance": {"scale": 2.0}}
    if name == "flow":
        return make_pipeline(sampling=settings | {"steps": 5})
    if name == "diffusion":
        objective, network = GaussianDiffusion(variance="fixed_small"), make_network(time_scale=1000)
        return make_pipeline(objective=objective, network=network, sampling=settings | {"steps": 5})
    bottleneck = {"kind": "multi_scale", "sides": [1, 2, 4], "bottleneck": FSQ} if name == "levels" else FSQ
    tokenizer = randomised(ConvAutoencoder(16, bottleneck, width=8, multipliers=[1, 2, 2], blocks=1, groups=4), 1)
    if name == "levels":
        network = NextScaleTransformer([21], [1, 4, 16], 2, 12, 4, **SIZES)
        network.take_bottleneck(tokenizer.neck)
        network = randomised(network, 2)
        return make_pipeline(tokenizer=tokenizer, network=network, objective=NextScale(), sampling=settings)
    make, objective = {
        "masked": (BidirectionalTransformer, MaskedToken()),
        "next": (CausalTransformer, NextToken()),
        "random": (CausalTransformer, RandomOrder(1, 2)),
    }[name]
    arguments = {"target_positions": True} if name == "random" else {}
    network = randomised(make([4, 4], 12, 4, **SIZES, **arguments), 2)
    return make_pipeline(tokenizer=tokenizer, network=network, objective=objective, sampling=settings)


def pictures(count: int = 3) -> Tensor:
    """Blurred noise in [-1, 1], [count, 3, 16, 16], of 8 bits."""
    noise = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    return (
        torch.nn.functional.interpolate(noise, 16, mode="bilinear").clamp(-1, 1) * 127.5 + 127.5
    ).round() / 127.5 - 1


def as_pil(images: Tensor) -> list[Image.Image]:
    pixels = (images * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one) for one in pixels]


def mask_of(*rows: int) -> Tensor:
    """White in these rows of tokens, [16, 16] bool."""
    return torch.isin(torch.arange(16) // 4, torch.tensor(rows))[:, None].expand(16, 16)


def edited(family: str, images: Tensor, labels=LABELS, seeds=SEEDS, **settings) -> Tensor:
    pipe = pipeline_of(family)
    pipe.set_progress_bar_config(disable=True)
    drawn = generators(*seeds)
    return pipe(labels, image=images, generator=drawn, output_type="pt", **FAMILIES[family], **settings).images


def shown(images: Tensor) -> Tensor:
    return (images / 2 + 0.5).clamp(0, 1)


@every_family
def test_the_ends_of_strength_are_a_new_image_and_the_reconstruction(family):
    pipe, images = pipeline_of(family), pictures()
    new = pipe(LABELS, generator=generators(*SEEDS), output_type="pt", **FAMILIES[family]).images
    assert torch.equal(edited(family, images, strength=1), new)
    assert torch.equal(edited(family, images, mask=torch.ones(16, 16)), new)  # all is repainted, by the same draws
    rebuilt = shown(pipe.decode(pipe.encode(images)))
    distances = [(edited(family, images, strength=s) - rebuilt).abs().mean().item() for s in (0.01, 0.5, 1)]
    assert distances[0] < 0.03 and distances[0] < distances[1] and distances[0] < distances[2]


@every_family
def test_outside_of_the_mask_the_pixels_are_the_given_ones(family):
    images, mask = pictures(), mask_of(2, 3)
    for strength in (1, 0.6):
        found = edited(family, images, mask=mask, strength=strength)
        assert torch.equal(found[..., ~mask], shown(images)[..., ~mask])
        assert (found - shown(images))[..., mask].abs().mean() > 1e-3
    assert torch.equal(edited(family, images, mask=mask_of()), shown(images))  # a black mask changes nothing
    (code,) = pipeline_of(family)(
        LABELS, image=images, mask=mask, output_type="latent", return_dict=False, **FAMILIES[family]
    )
    known = pipeline_of(family).encode(images)
    known = known.z if code.is_floating_point() else known.ids
    anew = pipeline_of(family).tokenizer.tokens_within(mask[None, None])[0]
    assert torch.equal(code[:, ~anew], known[:, ~anew]) and not torch.equal(code[:, anew], known[:, anew])


@every_family
def test_an_edit_depends_on_its_own_image_mask_label_and_generator_alone(family):
    images, masks = pictures(), torch.stack([mask_of(0), mask_of(1, 2, 3), mask_of(3)])
    together = edited(family, images, mask=masks, strength=0.8)
    for i in range(3):
        one = {"labels": LABELS[i], "seeds": SEEDS[i : i + 1], "mask": masks[i]}
        assert torch.allclose(edited(family, images[i], **one, strength=0.8), together[i : i + 1], atol=1e-5)


def test_one_image_serves_many_labels_and_seeds():
    pipe, images = pipeline_of("flow"), pictures()
    many = edited("flow", images[0], mask=mask_of(1), strength=0.7)
    assert torch.allclose(many, edited("flow", images[[0, 0, 0]], mask=mask_of(1), strength=0.7), atol=1e-5)
    twice = pipe([1, 2, 0], image=images, num_images_per_label=2, generator=generators(*range(6)), output_type="pt")
    first = edited("flow", images[1], labels=2, seeds=(3,))
    assert torch.allclose(twice.images[3:4], first, atol=1e-5)
    assert len(pipe(3, image=as_pil(images)).images) == 3  # one label for all images
    free = make_pipeline(num_classes=0)
    assert len(free(image=images, strength=0.5).images) == 3 and len(free(image=images[0], num_images=2).images) == 2


def test_pictures_of_all_kinds_are_the_same_images():
    pipe, images = pipeline_of("flow"), pictures()
    expected, pil = pipe.encode(images).z, as_pil(images)
    for given in (
        pil,
        [images[i] for i in range(3)],
        np.stack([np.asarray(one) for one in pil]),
        [np.asarray(one) for one in pil],
        shown(images).permute(0, 2, 3, 1).numpy(),
    ):
        assert torch.allclose(pipe.encode(given).z, expected, atol=1e-4)
    assert pipe.encode(images * 1.5).z.isfinite().all()  # decoders go a little beyond [-1, 1]
    large = pil[0].resize((48, 32), Image.Resampling.NEAREST)
    assert torch.allclose(pipe.encode(large.crop((8, 0, 40, 32))).z, pipe.encode(large).z)  # its central square
    turned = Image.fromarray(np.asarray(pil[0]).transpose(1, 0, 2)[::-1])
    turned.getexif()[0x0112] = 6  # to be turned clockwise when it is shown
    clockwise = Image.fromarray(np.asarray(turned)[::-1].transpose(1, 0, 2))
    assert torch.equal(pipe.encode(turned).z, pipe.encode(clockwise).z)


def test_a_mask_is_cut_like_its_image():
    pipe = pipeline_of("flow")
    large = as_pil(pictures(1))[0].resize((96, 64))
    mask = Image.new("L", (96, 64))
    mask.paste(255, (0, 0, 48, 64))  # the left half of the picture, and of its central square
    half = torch.zeros(16, 16)
    half[:, :8] = 1

    def images(given) -> Tensor:
        return pipe(0, image=large, mask=given, generator=generators(4), output_type="pt").images

    assert torch.equal(images(mask), images(half)) and torch.equal(images(mask), images(np.asarray(mask)))
    assert torch.equal(images(half), images(np.asarray(mask.convert("RGB")))) and not torch.equal(
        images(half), images(1 - half)
    )


def test_the_edge_of_a_mask_fades_over_so_many_pixels():
    images, mask = pictures(1), mask_of(2, 3)
    sharp = edited("flow", images, labels=0, seeds=(1,), mask=mask)
    soft = edited("flow", images, labels=0, seeds=(1,), mask=mask, mask_blur=3)
    assert torch.equal(sharp[..., :5, :], soft[..., :5, :]) and torch.equal(sharp[..., 8:, :], soft[..., 8:, :])
    assert (sharp - soft)[..., 5:8, :].abs().amax(dim=(0, 1, 3)).min() > 0
    weights = feather(mask[None, None].float(), 3)[0, 0, :, 0]
    assert torch.allclose(weights[4:9], torch.tensor([0, 2 / 7, 4 / 7, 6 / 7, 1]))


def test_codes_are_those_of_the_tokenizer():
    for family in ("flow", "masked"):
        pipe, images = pipeline_of(family), pictures()
        with torch.no_grad():
            code = pipe.tokenizer.encode(images)
            expected = pipe.tokenizer.decode(code)
        assert torch.equal(pipe.decode(pipe.encode(images)), expected)
        pipe.enable_slicing()
        assert torch.allclose(pipe.decode(pipe.encode(images)), expected, atol=1e-5)
        pipe.disable_slicing()


def test_images_between_two_images():
    pipe, images = pipeline_of("flow"), pictures(2)
    row = pipe.interpolate(*images, steps=5, output_type="pt").images
    assert torch.allclose(row[[0, 4]], shown(pipe.decode(pipe.encode(images))), atol=1e-4)
    z = pipe.encode(images).z
    assert torch.allclose(row[2:3], shown(pipe.decode(Code(z=arc(*z, 3)[1:2]))), atol=1e-4)
    assert len(pipe.interpolate(*as_pil(images)).images) == 8
    with pytest.raises(ValueError, match="nothing lies between two ids"):
        pipeline_of("masked").interpolate(*images)
    with pytest.raises(ValueError, match="3 are given"):
        pipe.interpolate(images, images[0])


def test_tokens_without_a_place_take_no_mask():
    bottleneck = {"kind": "vector_quantize", "dim": 4, "vocab": 12}
    tokenizer = randomised(TiTok(16, bottleneck, tokens=6, **SIZES, patch_size=4), 1)
    network = randomised(BidirectionalTransformer([6], 12, 4, **SIZES), 2)
    pipe = LatentPipeline(tokenizer, network, MaskedToken(), id2label=NAMES)
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe(0, image=pictures(1), strength=0.5).images) == 1
    fails(pipe, "tokens of a TiTok have no place in the image", 0, image=pictures(1), mask=mask_of(1))


def test_interrupted_edits_keep_what_is_outside_of_the_mask():
    pipe, images, mask = pipeline_of("flow"), pictures(1), mask_of(0)

    def stop(pipe, step, level, tensors):
        pipe._interrupt = True

    found = pipe(0, image=images, mask=mask, callback_on_step_end=stop, output_type="pt").images
    assert torch.equal(found[..., ~mask], shown(images)[..., ~mask])
    pipe = pipeline_of("next_token")
    ids = pipe(0, image=images, mask=mask, callback_on_step_end=stop, output_type="latent", return_dict=False)[0]
    assert torch.equal(ids[:, 4:], pipe.encode(images).ids[:, 4:])  # though but one token was chosen


def test_what_does_not_fit_is_said_in_one_line():
    pipe, images = pipeline_of("flow"), pictures(2)
    for strength in (0, -0.1, 1.1, "half"):
        fails(pipe, "strength", 0, image=images, strength=strength)
    fails(pipe, "strength is of an image that is edited; give image=", 0, strength=0.5)
    fails(pipe, "mask is of an image", 0, mask=mask_of(0))
    fails(pipe, "mask_blur is of the edge of a mask", 0, image=images, mask_blur=2)
    fails(pipe, "mask_blur", 0, image=images, mask=mask_of(0), mask_blur=-1)
    fails(pipe, r"\[2, 3, 8, 8\]; this pipeline takes \[B, 3, 16, 16\]", 0, image=images[..., :8, :8])
    fails(pipe, "would be from -3 to", 0, image=images.clamp(max=0) * 0 - 3)
    fails(pipe, "image is 'cat.png'; give a PIL image", 0, image="cat.png")
    fails(pipe, "image is Tensor of torch.uint8", 0, image=images.byte())
    fails(pipe, r"image is an array of \[2, 2, 2\]", 0, image=np.zeros((1, 2, 2, 2), np.uint8))
    fails(pipe, "2 images for num_images=3", 0, image=images, num_images=3)
    fails(pipe, "3 class_labels for num_images=2", [0, 1, 2], image=images)
    fails(pipe, "the mask has 8x8 pixels and its image 16x16", 0, image=images, mask=mask_of(0)[:8, :8])
    fails(pipe, "3 masks for 2 images", 0, image=images, mask=torch.zeros(3, 16, 16))
    fails(pipe, "mask holds values from 0 to 2", 0, image=images, mask=mask_of(0) * 2.0)
    fails(pipe, "mask is a str", 0, image=images, mask="mask.png")


def test_a_swapped_in_scheduler_edits_nothing():
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe = make_pipeline(scheduler=FlowMatchEulerDiscreteScheduler())
    fails(pipe, "set pipe.scheduler = None", 0, image=pictures(1))


def test_a_class_token_is_not_made_of_an_image_alone():
    network = make_network(class_token=5)
    pipe = make_pipeline(network=network, objective=FlowMatching(class_token=5))
    fails(pipe, "an image has none: strength=1", 0, image=pictures(1), strength=0.5)
    found = pipe(0, image=pictures(1), mask=mask_of(1), generator=generators(1), output_type="pt").images
    assert torch.equal(found[..., ~mask_of(1)], shown(pictures(1))[..., ~mask_of(1)])
    new = pipe(0, generator=generators(1), output_type="pt").images
    assert torch.equal(pipe(0, image=pictures(1), strength=1, generator=generators(1), output_type="pt").images, new)


def test_grey_pictures_that_are_wider_than_high():
    tokenizer = randomised(
        ConvAutoencoder([16, 24], FSQ, image_channels=1, width=8, multipliers=[1, 2, 2], groups=4), 1
    )
    network = randomised(BidirectionalTransformer([4, 6], 12, 4, **SIZES), 2)
    pipe = make_pipeline(tokenizer=tokenizer, network=network, objective=MaskedToken(), sampling={"steps": 3})
    picture = as_pil(pictures(1))[0].resize((60, 32))
    mask = Image.new("L", (60, 32))
    mask.paste(255, (30, 0, 60, 32))  # the right half
    found = pipe(0, image=picture, mask=mask, generator=generators(1), output_type="pt").images
    given = shown(pipe.tokenizer.decode(pipe.encode(picture)))
    assert found.shape == given.shape == (1, 1, 16, 24)
    expected = np.asarray(picture.resize((30, 16), Image.Resampling.BOX).convert("L"))[:, 3:15]
    assert np.abs(found[0, 0, :, :12].numpy() * 255 - expected).max() < 1.5
    fails(pipe, r"this pipeline takes \[B, 1, 16, 24\]", 0, image=pictures(1))


def test_sixteen_bits_outside_of_the_mask_are_the_given_ones():
    tokenizer = randomised(ConvAutoencoder(16, FSQ, image_channels=1, width=8, multipliers=[1, 2, 2], groups=4), 1)
    network = randomised(BidirectionalTransformer([4, 4], 12, 4, **SIZES), 2)
    pipe = make_pipeline(tokenizer=tokenizer, network=network, objective=MaskedToken(), depth=16)
    levels = np.random.default_rng(1).integers(0, 65536, (16, 16)).astype(np.uint16)
    for picture in (Image.fromarray(levels), levels):
        found = np.asarray(pipe(0, image=picture, mask=mask_of(2), generator=generators(1)).images[0])
        assert found.dtype == np.uint16 and np.array_equal(found[~mask_of(2)], levels[~mask_of(2)])
