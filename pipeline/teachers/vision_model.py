"""The image half of a published vision model, by transformers: DINOv2, CLIP or SigLIP."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.nn.resize import resize_antialias

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Family:
    """What the models of one paper have in common."""

    architecture: str  # class of transformers
    output: str  # its field that holds the features; of a sequence, the first token's
    mean: tuple[float, ...]  # of colours in [0, 1]
    std: tuple[float, ...]
    size: int | None  # pixels a side; None: as the config says


FAMILIES = {  # by `model_type` of config.json, of a whole model or of its image half
    "dinov2": Family("Dinov2Model", "last_hidden_state", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224),
    "clip": Family("CLIPVisionModelWithProjection", "image_embeds", CLIP_MEAN, CLIP_STD, None),
    "siglip": Family("SiglipVisionModel", "pooler_output", (0.5,) * 3, (0.5,) * 3, None),
}


class VisionModel(nn.Module):
    """Features [B, dim] of images: DINOv2's class token after the last norm, CLIP's and SigLIP's image embedding.

    Oquab et al., arXiv:2304.07193; Radford et al., arXiv:2103.00020; Zhai et al., arXiv:2303.15343. Embeddings are as
    the model gives them, not of unit length.
    """

    def __init__(self, family: Family, model: nn.Module):
        super().__init__()
        self.family, self.model = family, model
        self.size = family.size or model.config.image_size
        self.register_buffer("mean", 255 * torch.tensor(family.mean)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(family.std)[:, None, None], persistent=False)

    @classmethod
    def load(cls, folder: Path, kind: str) -> "VisionModel":
        """From a folder with config.json and model.safetensors (or pytorch_model.bin, read without running code).

        Frozen, in evaluation mode, in float32. Raises ValueError where it holds no model of this `kind`, or not all of
        its weights.
        """
        check_folder(folder, kind)
        import transformers  # takes seconds, which the check of a recipe need not

        family = FAMILIES[kind]
        model, report = getattr(transformers, family.architecture).from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{folder} lacks {missing[0]} of a {kind}; fetch it again")
        return cls(family, model).requires_grad_(False).eval()

    @property
    def dim(self) -> int:
        config = self.model.config
        return config.projection_dim if self.family.output == "image_embeds" else config.hidden_size

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 255]; resized as Pillow does, whole, to the model's own size."""
        pixels = (resize_antialias(images, self.size, self.size) - self.mean) / self.std
        found = getattr(self.model(pixel_values=pixels), self.family.output)
        return found[:, 0] if found.ndim == 3 else found


def check_folder(folder: Path, kind: str) -> None:
    """ValueError unless the config in `folder` is that of a model of this kind, or of its image half."""
    found = json.loads((folder / "config.json").read_text()).get("model_type")
    if found not in (kind, f"{kind}_vision_model"):
        raise ValueError(f"{folder} holds a {found}, not a {kind}; name the folder of one")
