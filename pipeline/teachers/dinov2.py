"""DINOv2: a vision transformer that has learned from images without labels."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 14  # pixels a side
PLACE = 16  # pixels of an image that become a patch
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours in [0, 1]
SIZES = {384: "s", 768: "b", 1024: "l", 1536: "g"}  # width -> the model's published letter


class Dinov2(nn.Module):
    """Oquab et al., arXiv:2304.07193, as transformers has it; the class feature is the class token after the last norm.

    Images [B, 3, H, W] in [-1, 1] are resampled (bicubic, with antialiasing) until 16 of their pixels are a patch of
    14, 256 to 224, and given ImageNet's mean and variance. So a tokenizer of stride 16 and the teacher see one grid.

    `model` is a Dinov2Model of transformers.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if model.config.patch_size != PATCH:
            raise ValueError(f"this DINOv2 has patches of {model.config.patch_size} pixels; those of {PATCH} are read")
        self.model = model
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    @classmethod
    def load(cls, folder: Path) -> "Dinov2":
        """From a folder with config.json and model.safetensors, as facebook/dinov2-base; frozen, in evaluation mode.

        Raises ValueError where it holds another model, or not all of its weights; pickles are never read.
        """
        read_width(folder)
        from transformers import Dinov2Model  # takes seconds, which a check of a recipe need not

        model, report = Dinov2Model.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{folder} lacks {missing[0]} of a DINOv2; fetch it again")
        return cls(model).requires_grad_(False).eval()

    @property
    def name(self) -> str:
        """What numbers on its features are called after: dinov2_b; with the width where there is no letter for it."""
        return called(self.dim)

    @property
    def dim(self) -> int:
        return self.model.config.hidden_size

    def pixels(self, images: Tensor) -> Tensor:
        """Images as the model reads them, with sides divisible by its patch."""
        sides = [PATCH * max(1, round(side / PLACE)) for side in images.shape[2:]]
        images = F.interpolate(images.float(), sides, mode="bicubic", antialias=True)
        return ((images + 1) / 2 - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        """[B, dim], the class token after the last norm."""
        return self.model(self.pixels(images)).last_hidden_state[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)


def read_width(folder: Path) -> int:
    """Channels of the features of the DINOv2 in `folder`, from its config; ValueError where it is another model."""
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "dinov2":
        raise ValueError(f"{folder} holds a {config.get('model_type')}, not a dinov2; name the folder of one")
    return config["hidden_size"]


def called(width: int) -> str:
    return f"dinov2_{SIZES.get(width, width)}"
