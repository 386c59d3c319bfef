"""Any vision model of transformers as a source of features, by folder."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours in [0, 1]


class VisionFolder(nn.Module):
    """Features of an image are the mean over all tokens (or places) of the model's last hidden state.

    Images [B, 3, H, W] in [-1, 1] are brought to `size` pixels (bicubic, with antialiasing) and to the model's colours.
    """

    def __init__(self, model: nn.Module, name: str, size: int, mean: list[float], std: list[float]):
        super().__init__()
        self.model, self.name, self.size = model, name, size
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    @classmethod
    def load(cls, folder: Path) -> "VisionFolder":
        """From a folder with config.json and safetensors, frozen; colours as its preprocessor_config.json says.

        Raises ValueError where the folder holds no such model, or not all of its weights.
        """
        if not (folder / "config.json").is_file():
            raise ValueError(f"vision: {folder} holds no config.json; name a folder of one of transformers' models")
        config = json.loads((folder / "config.json").read_text())
        config = config.get("vision_config", config)
        if "image_size" not in config:
            raise ValueError(f"vision: {folder} states no image_size, so it is no vision model")
        model, report = AutoModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"vision: {folder} lacks {missing[0]}; fetch it again")
        file = folder / "preprocessor_config.json"
        colours = json.loads(file.read_text()) if file.is_file() else {}
        mean, std = colours.get("image_mean", list(MEAN)), colours.get("image_std", list(STD))
        model = getattr(model, "vision_model", model)
        return cls(model, folder.resolve().name, config["image_size"], mean, std).requires_grad_(False).eval()

    def features(self, images: Tensor) -> Tensor:
        """[B, D] float32."""
        images = F.interpolate(images.float(), self.size, mode="bicubic", antialias=True)
        hidden = self.model(pixel_values=((images + 1) / 2 - self.mean) / self.std).last_hidden_state
        return (hidden.flatten(2).mean(dim=2) if hidden.ndim == 4 else hidden.mean(dim=1)).float()
