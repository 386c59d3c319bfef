"""Channel moments: mean, standard deviation and kurtosis of the channels of a code."""

from torch import Tensor

from pipeline.features.summaries import extremes, mean
from pipeline.metrics.base import Measurements, Quantity, TokenizerInputs, TokenizerMetric


class ChannelMoments(TokenizerMetric):
    """The channel moments at the scale of generators, which expect mean 0 and standard deviation 1."""

    quantities = (
        Quantity(
            "latent_mean",
            "Channel mean farthest from 0",
            "neither",
            "mean of the channel that is farthest from 0, the mean that generators expect",
        ),
        Quantity(
            "latent_std",
            "Channel std farthest from 1",
            "neither",
            "std of the channel that is farthest from 1, the std that generators expect",
        ),
        Quantity(
            "latent_kurtosis",
            "Excess kurtosis",
            "neither",
            "0 for normal values, negative for flat, positive for heavy-tailed ones; mean over channels",
        ),
    )
    order = 700
    group = "Latents"

    def measure(self, inputs: TokenizerInputs) -> Measurements:
        z = inputs.held_out.rows["z"]
        moments = channel_moments(z)
        where = {"scale": "as generators see it", "channels": z.shape[2]} | inputs.of_images
        for quantity, name, aim in zip(self.quantities, ("mean", "std"), (0.0, 1.0)):
            farthest = moments[name][(moments[name] - aim).abs().argmax()].item()
            yield quantity.measurement(farthest, where, details=extremes(moments[name]))
        varying = moments["excess"][moments["std"] > 0]
        if len(varying):
            yield self.quantities[2].measurement(mean(varying), where, details=extremes(moments["excess"]))


def channel_moments(z: Tensor) -> dict[str, Tensor]:
    """`mean`, `std` and `excess` kurtosis [C] in float64, over images and tokens, of codes [B, N, C].

    The excess kurtosis is 0 for a normal distribution, -1.2 for a uniform one, and nan for a constant channel.
    """
    rows = z.double().flatten(0, 1)
    mean = rows.mean(dim=0)
    squares = (rows - mean).square()
    variance = squares.mean(dim=0)
    return {"mean": mean, "std": variance.sqrt(), "excess": squares.square().mean(dim=0) / variance.square() - 3}
