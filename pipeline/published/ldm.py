"""Autoencoders of latent diffusion (CompVis/latent-diffusion and its descendants, arXiv:2112.10752)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.published.autoencoder_trunk import convert_autoencoder, normalised, read_statistics
from pipeline.ranges import Positive

WHAT = "KL autoencoders of latent diffusion (CompVis/latent-diffusion: kl-f4 ... kl-f32 model.ckpt; SD's VAE .ckpt)"


def convert(state: Mapping[str, Tensor], scale: Positive | None = None, stats: str | None = None) -> dict[str, object]:
    """{"tokenizer"} of an LDM autoencoder with a Gaussian posterior, encoder and decoder as the keys tell.

    The file does not hold the number that generators know its codes by: `scale` is what codes are multiplied by,
    0.18215 for Stable Diffusion's, DiT, SiT, REPA and REG; `stats` is a file of mean and std. A run with
    `latents.statistics=stored` keeps them. The training loss (`loss.*`) and averages (`model_ema.*`) stay behind.
    Raises ValueError for anything unexpected.
    """
    if scale is not None and stats is not None:
        raise ValueError("import ldm: state scale or stats, not both")
    tokenizer = convert_autoencoder(state, "latent diffusion autoencoder")
    if scale is not None:
        tokenizer.std.fill_(1 / scale)
    return {"tokenizer": normalised(tokenizer, *read_statistics(stats)) if stats else tokenizer}
