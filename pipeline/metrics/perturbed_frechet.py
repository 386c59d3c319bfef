"""Fréchet distance of reconstructions of perturbed codes (pFID): how well a decoder bears the errors of a generator."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.bottlenecks.base import Bottleneck
from pipeline.code import Code, LatentSpec
from pipeline.draws import ImageDraws, mix
from pipeline.features.moments import frechet_distance
from pipeline.images.rendering import rendered
from pipeline.metrics.base import EncodedImages, Measurements, Quantity, TokenizerInputs, TokenizerMetric
from pipeline.nn.code_usage import LARGEST

RATES = (0.9, 0.8, 0.7, 0.6, 0.5)
STRENGTHS = (0.0122, 0.0171, 0.0220)  # fractions of the codebook
NOISES = (0.1, 0.2, 0.3, 0.4, 0.5)


class PerturbedFrechet(TokenizerMetric):
    """Mean over many perturbations of codes of the Fréchet distance of their reconstructions (arXiv:2509.12474)."""

    quantities = (
        Quantity(
            "pfd_{}",
            "Fréchet distance of perturbed codes, {}",
            "lower",
            "distance between images and reconstructions of their perturbed codes, mean over perturbations",
        ),
    )
    fewest = 2  # of a covariance
    order = 150
    group = report_group = "Reconstructions"
    on_demand = "perturbed"

    @classmethod
    def why_left_out(cls, spec: LatentSpec) -> str | None:
        return f"pFID: {spec.vocab} codes are too many to count one by one" if spec.vocab > LARGEST else None

    def moment_rows(self, batch: EncodedImages) -> dict[str, Tensor]:
        """Features of reconstructions of each image's code, perturbed in every way.

        Each way is drawn from the seed and the image's number alone, so that no split over batches or processes
        changes it.
        """
        rows, seed = {}, perturbation_seed(batch.seed)
        for way in grid(batch.tokenizer.spec):
            perturbed = as_perturbed(batch.tokenizer.neck, batch.code, way, batch.places, seed)
            images = rendered(batch.tokenizer, perturbed.to(batch.images.device), batch.condition)
            features = batch.extractors.features
            rows |= {f"{way}_{feature.name}": feature.extract(images) for feature in features}
        return rows

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        ways, moments = grid(inputs.spec), inputs.held_out.moments
        computed = {name: of for name, of in inputs.held_out.protocol.items() if name != "splits"}
        for feature in inputs.extractors.features:
            name = feature.name
            of_ways = {str(way): frechet_distance(moments[f"{way}_{name}"], moments[name]) for way in ways}
            where = {
                "images": f"{moments[name].count} held-out images and reconstructions of their perturbed codes",
                "ways": f"mean over {len(of_ways)}",
                "seed": perturbation_seed(inputs.seed),
                "features": feature.describe(),
            }
            value = sum(of_ways.values()) / len(of_ways)
            yield self.quantities[0].measurement(value, where | computed, name, details=of_ways)


def perturbation_seed(seed: int) -> int:
    return mix(seed, "perturbed")


@dataclass(frozen=True)
class Exchange:
    """Every id is, with probability `rate`, drawn evenly from the `strength` codes nearest to its own, itself too."""

    rate: float
    strength: int

    def __str__(self) -> str:
        return f"rate_{self.rate:g}_strength_{self.strength}"


@dataclass(frozen=True)
class Noise:
    """(1 - u) z + u e of z at unit scale, with normal e: what flow matching has at noise level u."""

    u: float

    def __str__(self) -> str:
        return f"noise_{self.u:g}"


def grid(spec: LatentSpec) -> list[Exchange | Noise]:
    """The perturbations over whose Fréchet distances pFID is the mean.

    With ids, the 5 x 3 of Qiu et al., arXiv:2509.12474: `RATES` and pools of 1.22, 1.71 and 2.20 % of the codes (200,
    280 and 360 of 16384; the paper's numbers for 1024 are of 10, 15 and 20, not of our 12, 18 and 23), 2 at least, and
    each size once. With several codebooks each stream is perturbed by itself, by its own size. Nearest means by the
    code vectors; of binary codes, by the bits that differ, with ties broken at random.

    Ours, for continuous codes, where there is no published one: the five noise levels `NOISES`.
    """
    if not spec.vocab:
        return [Noise(u) for u in NOISES]
    pools = sorted({max(2, round(share * spec.codes)) for share in STRENGTHS})
    return [Exchange(rate, pool) for rate in RATES for pool in pools]


@torch.no_grad()
def as_perturbed(neck: Bottleneck, code: Code, way: Exchange | Noise, places: list[int], seed: int) -> Code:
    """`code` of B images, ids or z at unit scale, perturbed; image i as a function of (seed, way, places[i]) alone."""
    device = next((t.device for t in [*neck.parameters(), *neck.buffers()]), torch.device("cpu"))
    draws = ImageDraws.from_seeds([mix(seed, str(way), place) for place in places], device)
    if isinstance(way, Exchange):
        ids, last = code.ids.to(device), neck.vocab - 1
        redrawn = neck.redraw_ids(ids.clamp(max=last), way.rate, way.strength, draws)
        return Code(ids=torch.where(ids > last, ids, redrawn))  # the end of a row is no code
    z = code.z.to(device)
    return Code(z=(1 - way.u) * z + way.u * draws.normal("noise", tuple(z.shape[1:])))
