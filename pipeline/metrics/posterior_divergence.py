"""Posterior divergence: how far the posterior of a variational bottleneck is from the standard normal."""

import math

from pipeline.features.passes import PerImage
from pipeline.features.summaries import mean
from pipeline.metrics.base import EncodedImages, Measurements, Quantity, TokenizerInputs, TokenizerMetric


class PosteriorDivergence(TokenizerMetric):
    """Kullback-Leibler divergence of a bottleneck that has this term."""

    quantities = (
        Quantity(
            "latent_kl",
            "KL divergence",
            "neither",
            "divergence of the posterior from the standard normal, mean over the values of a code",
            "nats",
        ),
    )
    needs = frozenset({"posterior"})
    order = 720
    group = "Latents"

    def rows(self, batch: EncodedImages) -> PerImage:
        _, terms = batch.tokenizer.neck(batch.tokenizer.features(batch.images, batch.condition))
        return {"kl": terms["kl"].expand(len(batch.images))} if "kl" in terms else {}

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        rows = inputs.held_out.rows
        value, (_, tokens, channels) = mean(rows["kl"]), rows["z"].shape
        bits = value * tokens * channels / math.log(2)
        details = {"bits_an_image": bits, "bits_a_pixel": bits / math.prod(inputs.image_shape[1:])}
        where = {"scale": "the bottleneck's own"} | inputs.of_images
        yield self.quantities[0].measurement(value, where, details=details)
