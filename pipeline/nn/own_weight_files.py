"""Weights of our models in files that no class of diffusers takes for its own."""

import os
from typing import Any

from diffusers import ModelMixin

from pipeline.stored_weights import OWN_VARIANT


class OwnWeightFiles(ModelMixin):
    """A model whose weights lie in diffusion_pytorch_model.tessera.safetensors, but for those of a variant.

    `AutoencoderKL.from_pretrained` of such a folder is an error. With the usual name it would warn alone, and be an
    autoencoder with random weights, since no name in the file is one of its own.
    """

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *, variant: str | None = None, **options: Any
    ) -> "OwnWeightFiles":
        return super().from_pretrained(pretrained_model_name_or_path, variant=variant or OWN_VARIANT, **options)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **options: Any,
    ) -> None:
        """As diffusers has it; its pipelines pass those of the options that are named here."""
        named = {"safe_serialization": safe_serialization, "max_shard_size": max_shard_size}
        super().save_pretrained(save_directory, variant=variant or OWN_VARIANT, **named, **options)
