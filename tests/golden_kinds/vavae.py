"""VA-VAE's autoencoder through the import of its checkpoints."""

import torch
from torch import Tensor

from golden_kinds import Case, bare, grid, sequence
from pipeline.draws import GivenDraws

MATCHES = "tokenizer.autoencoder.AutoencoderKL"


@torch.no_grad()
def outputs(case: Case) -> dict[str, Tensor]:
    tokenizer = bare(case.imported("vavae")["tokenizer"])
    images, latent = case.inputs["image"], case.inputs["latent"]
    shape = tuple(latent.shape[2:])
    assert tokenizer.grid(images) == shape
    h = tokenizer.features(images)
    mean, logvar = tokenizer.neck.split(h)
    noise = GivenDraws({"posterior": sequence(case.inputs["noise"])})
    sample, _ = tokenizer.neck(h, noise)
    # an image at a time, for ours is a mean over images and elements and theirs a sum over elements
    kl = torch.stack([tokenizer.neck(one)[1]["kl"] * one.shape[1] * tokenizer.neck.dim for one in h.split(1)])
    return {
        "moments": grid(h, *shape),
        "mean": grid(mean, *shape),
        "logvar": grid(logvar, *shape),
        "kl": kl,
        "posterior_sample": grid(sample.z, *shape),
        "decoded_mean": tokenizer.render(mean, grid=shape),
        "decoded_latent": tokenizer.render(sequence(latent), grid=shape),
    }
