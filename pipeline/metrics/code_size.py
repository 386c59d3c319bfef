"""Code size: values and bits of a code, from its geometry."""

import math

from pipeline.metrics.base import Measurements, Quantity, TokenizerInputs, TokenizerMetric

STORED_BITS = 16  # of a continuous value, as latents/ stores it by default


class CodeSize(TokenizerMetric):
    """Values and bits of a code."""

    quantities = (
        Quantity("dimensions", "Dimensions", "neither", "values in the code of an image, tokens times channels"),
        Quantity(
            "bits_per_pixel",
            "Bits per pixel",
            "lower",
            "bits of a code without entropy coding, per pixel of the image",
            headline=True,
        ),
    )
    order = 300
    group = "Budget"

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        spec, (channels, height, width) = inputs.spec, inputs.image_shape
        values, pixels = spec.tokens * spec.dim, height * width
        grid = "x".join(map(str, spec.grid))
        protocol = {"code": f"{grid} tokens of {spec.dim} channels", "images": f"of {height} x {width} pixels"}
        details = {"tokens": spec.tokens, "channels": spec.dim, "share_of_the_image's": values / (channels * pixels)}
        yield self.quantities[0].measurement(values, protocol, details=details)
        each = spec.codebooks * math.log2(spec.vocab) if spec.vocab else STORED_BITS * spec.dim
        of_ids, of_values = f"{spec.codebooks} id of {spec.vocab} a token", f"{STORED_BITS} bits a number, as stored"
        counted = {"counted": of_ids if spec.vocab else of_values}
        yield self.quantities[1].measurement(spec.tokens * each / pixels, counted | protocol)
