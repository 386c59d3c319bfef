"""VA-VAE checkpoints (hustvl/LightningDiT, arXiv:2501.01423)."""

from collections.abc import Mapping

from torch import Tensor

from pipeline.published.autoencoder_trunk import TRAINING, convert_autoencoder

WHAT = "VA-VAE, the f16d32 autoencoder of LightningDiT (hustvl/vavae-imagenet256-f16d32-dinov2: *.pt)"
ALIGNMENT = (r"foundation_model\..*", r"linear_proj\..*")  # the frozen vision model and the projection to its width


def convert(state: Mapping[str, Tensor]) -> dict[str, object]:
    """{"tokenizer"} of a VA-VAE state; what served its training alone stays behind.

    Its latent statistics lie in another file; `encode_dataset` measures ours. ValueError for anything unexpected.
    """
    return {"tokenizer": convert_autoencoder(state, "VA-VAE", (*TRAINING, *ALIGNMENT))}
