"""pFID: its grid, its draws, and that perturbing nothing gives the distance of plain reconstructions."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from metric_inputs import extractors_of, tokenizer_inputs
from support.small_quantizers import BITS, EUCLID, NODES, UNIT
from support.tiny_pipeline import randomised
from torch import Tensor

from pipeline import components
from pipeline.code import Code, LatentSpec
from pipeline.features.extractors import PixelFeatures
from pipeline.features.moments import Moments, frechet_distance
from pipeline.features.passes import ImageRows, collect_rows
from pipeline.images.reading import ImageBatch
from pipeline.images.rendering import rendered
from pipeline.measuring.image_statistics import gather_statistics
from pipeline.measuring.tokenizer import TokenizerMeasuring
from pipeline.metrics import perturbed_frechet
from pipeline.metrics.base import ImageSet, Measurement
from pipeline.metrics.perturbed_frechet import NOISES, Exchange, Noise, PerturbedFrechet, as_perturbed, grid
from pipeline.tokenizers.base import Tokenizer
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

CONV = {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
GAUSSIAN = {"kind": "gaussian", "dim": 3}
FEATURES = PixelFeatures(4)
COUNT = 70


def tokenizer_of(bottleneck: dict) -> Tokenizer:
    tokenizer = randomised(ConvAutoencoder(16, bottleneck, **CONV), 1)
    tokenizer.std.fill_(1.5)
    return tokenizer


def images() -> Tensor:
    return torch.rand(COUNT, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


@torch.no_grad()
def measured(tokenizer: Tokenizer, ways: list[Exchange | Noise], seed: int = 0) -> tuple[Measurement, float]:
    """pFID over `ways`, and the distance of plain reconstructions."""
    pixels, metric = images(), PerturbedFrechet()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perturbed_frechet, "grid", lambda spec: ways)
        measuring = TokenizerMeasuring(tokenizer, extractors_of([FEATURES]), [metric], seed, tokenizer.encode)

        def measure(indices: Tensor) -> ImageRows:
            seen = ImageRows(summed={FEATURES.name: FEATURES.extract(pixels[indices])})
            return seen | measuring.rows(measuring.reconstruct(ImageBatch(pixels[indices]), indices))

        found = gather_statistics(Accelerator(cpu=True), COUNT, measure, torch.arange(0), batch=16)
        inputs = tokenizer_inputs(tokenizer, {}, {}, seed=seed, extractors=extractors_of([FEATURES]))
        ((name, number),) = metric.measure(replace(inputs, held_out=ImageSet(found.narrow, {}, found.moments)))
    assert name == "pfd_pixels" and number.protocol["images"].startswith(f"{COUNT} held-out images")
    reconstructions = FEATURES.extract(rendered(tokenizer, tokenizer.encode(pixels)))
    plain = frechet_distance(Moments.of(reconstructions), found.moments[FEATURES.name])
    return number, plain


def test_the_grid_is_the_published_one_and_follows_the_size_of_the_codebook():
    ways = grid(LatentSpec((16, 16), 8, 16384))
    assert len(ways) == 15 and {way.rate for way in ways} == {0.9, 0.8, 0.7, 0.6, 0.5}
    pools = {16384: [200, 280, 360], 8192: [100, 140, 180], 4096: [50, 70, 90], 256: [3, 4, 6], 128: [2, 3]}
    for vocab, expected in pools.items():
        assert [way.strength for way in grid(LatentSpec((4,), 8, vocab))][: len(expected)] == expected
    assert [way.u for way in grid(LatentSpec((16, 16), 8))] == list(NOISES)


@pytest.mark.parametrize(
    "bottleneck, nothing", [(UNIT, Exchange(0.0, 5)), (BITS, Exchange(0.9, 1)), (GAUSSIAN, Noise(0.0))]
)
def test_perturbing_nothing_is_plain_reconstruction_and_more_is_farther(bottleneck, nothing):
    tokenizer = tokenizer_of(bottleneck)
    number, plain = measured(tokenizer, [nothing])
    assert number.value == pytest.approx(plain, rel=1e-5)
    spec = tokenizer.spec
    code = tokenizer.encode(images())
    shaken = as_perturbed(tokenizer.neck, code, grid(spec)[-1], list(range(COUNT)), 0)
    if spec.vocab:
        assert not torch.equal(shaken.ids, code.ids) and shaken.z is None
    else:
        u = NOISES[-1]
        noise = (shaken.z - (1 - u) * code.z) / u
        assert noise.mean().abs() < 0.05 and noise.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("bottleneck", [EUCLID, NODES["product"], GAUSSIAN], ids=["vq", "product", "gaussian"])
def test_the_number_is_the_mean_over_the_grid_and_a_function_of_the_seed(bottleneck):
    tokenizer = tokenizer_of(bottleneck)
    ways = grid(tokenizer.spec)[::2]
    number, plain = measured(tokenizer, ways)
    assert number.value == pytest.approx(sum(number.details.values()) / len(ways))
    assert list(number.details) == [str(way) for way in ways]
    assert number.value != pytest.approx(plain, rel=1e-6)
    assert measured(tokenizer, ways)[0].value == number.value
    assert measured(tokenizer, ways, seed=1)[0].value != number.value


@pytest.mark.parametrize("node", [UNIT, BITS, NODES["residual"]], ids=["vq", "bits", "residual"])
def test_an_image_is_perturbed_alike_in_any_batch(node):
    neck = components.build("bottlenecks", node)
    code = Code(ids=neck(torch.randn(9, 5, neck.inputs))[0].ids)
    way = Exchange(0.7, 4)
    whole = as_perturbed(neck, code, way, list(range(9)), 3).ids
    rows = collect_rows(
        Accelerator(cpu=True),
        9,
        lambda at: {"ids": as_perturbed(neck, code[at], way, at.tolist(), 3).ids},
        batch=4,
    )
    assert torch.equal(rows["ids"], whole)
    assert not torch.equal(as_perturbed(neck, code, Exchange(0.6, 4), list(range(9)), 3).ids, whole)
