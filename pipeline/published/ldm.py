"""Autoencoders of latent diffusion (CompVis/latent-diffusion and its descendants, arXiv:2112.10752)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.published.autoencoder_trunk import convert_autoencoder

WHAT = "KL autoencoders of latent diffusion (CompVis/latent-diffusion: kl-f4 ... kl-f32 model.ckpt; SD's VAE .ckpt)"


def convert(state: Mapping[str, Tensor]) -> dict[str, object]:
    """{"tokenizer"} of an LDM autoencoder with a Gaussian posterior, encoder and decoder as the keys tell.

    The training loss (`loss.*`) and averages (`model_ema.*`) stay behind. Raises ValueError for anything unexpected.
    """
    return {"tokenizer": convert_autoencoder(state, "latent diffusion autoencoder")}
