"""ConvNeXt-S as torchvision publishes it: the logits of its thousand classes of ImageNet."""

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nn.image_channels import as_rgb
from pipeline.vision.backbone import IMAGENET
from pipeline.vision.weights import verify

SIZE = 224  # pixels per side that the published weights have learned from
EPSILON = 1e-6  # of every layer norm
BLOCK = r"features\.(\d+)\.(\d+)\."
NAMES = {  # torchvision's names, and transformers'
    r"features\.0\.0": "convnext.embeddings.patch_embeddings",
    r"features\.0\.1": "convnext.embeddings.layernorm",
    BLOCK + r"block\.0": r"convnext.encoder.stages.{stage}.layers.\2.dwconv",
    BLOCK + r"block\.2": r"convnext.encoder.stages.{stage}.layers.\2.layernorm",
    BLOCK + r"block\.3": r"convnext.encoder.stages.{stage}.layers.\2.pwconv1",
    BLOCK + r"block\.5": r"convnext.encoder.stages.{stage}.layers.\2.pwconv2",
    BLOCK + r"layer_scale": r"convnext.encoder.stages.{stage}.layers.\2.layer_scale_parameter",
    r"features\.(\d+)\.([01])": r"convnext.encoder.stages.{stage}.downsampling_layer.\2",
    r"classifier\.0": "convnext.layernorm",
    r"classifier\.2": "classifier",
}


class ConvNext(nn.Module):
    """Liu et al., arXiv:2201.03545, of any sizes; transformers' module with torchvision's weights.

    Images are resampled to 224 pixels per side (bilinear, with antialiasing) and normalised by ImageNet's colours, as
    TiTok's perceptual loss does it (Yu et al., arXiv:2406.07550; bytedance/1d-tokenizer).
    """

    NAME = "convnext_small"  # in pipeline.vision.weights
    name = NAME

    def __init__(self, **sizes: Any):
        from transformers import ConvNextConfig, ConvNextForImageClassification

        super().__init__()
        self.model = ConvNextForImageClassification(ConvNextConfig(layer_norm_eps=EPSILON, **sizes))
        for buffer, values in zip(("mean", "std"), IMAGENET):
            self.register_buffer(buffer, torch.tensor(values)[:, None, None], persistent=False)

    @classmethod
    def load(cls, file: Path) -> "ConvNext":
        """From torchvision's file; frozen, in evaluation mode. ValueError where it is not the published one."""
        verify(cls.NAME, file)
        return cls.from_state(torch.load(file, map_location="cpu", weights_only=True))

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "ConvNext":
        """From the content of a file of torchvision's ConvNeXt, whose shapes tell its sizes.

        ValueError for keys that are missing or unknown.
        """
        renamed = {renamed_key(name): value for name, value in state.items()}
        renamed = {name: value.flatten() if name.endswith("_parameter") else value for name, value in renamed.items()}
        layers = [re.search(r"stages\.(\d+)\.layers\.(\d+)\.dwconv\.bias", name) for name in renamed]
        depths: dict[int, int] = {}
        for found in filter(None, layers):
            depths[int(found[1])] = max(depths.get(int(found[1]), 0), int(found[2]) + 1)
        if sorted(depths) != list(range(len(depths))) or "classifier.bias" not in renamed or not depths:
            raise ValueError("these are no weights of torchvision's ConvNeXt; get convnext_small again")
        of_stage = "convnext.encoder.stages.{}.layers.0.dwconv.bias"
        network = cls(
            depths=[depths[stage] for stage in sorted(depths)],
            hidden_sizes=[len(renamed[of_stage.format(stage)]) for stage in sorted(depths)],
            num_stages=len(depths),
            num_labels=len(renamed["classifier.bias"]),
            patch_size=renamed["convnext.embeddings.patch_embeddings.weight"].shape[-1],
        )
        needed = network.model.state_dict()
        if differing := sorted(set(needed) ^ set(renamed)):
            raise ValueError(f"these are not the weights of a ConvNeXt, for example {differing[0]}; get them again")
        network.model.load_state_dict(renamed)
        return network.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W] in [-1, 1], as `as_rgb` takes them."""
        images = as_rgb(images)
        if images.shape[2:] != (SIZE, SIZE):
            images = F.interpolate(images.float(), (SIZE, SIZE), mode="bilinear", antialias=True)
        pixels = ((images + 1) / 2 - self.mean) / self.std
        return self.model(pixel_values=pixels.to(self.model.dtype)).logits


def renamed_key(name: str) -> str:
    """torchvision's name of a weight as transformers'; ValueError for another."""
    module, _, kind = name.rpartition(".")
    if kind == "layer_scale":
        module, kind = name, ""
    for pattern, new in NAMES.items():
        if (found := re.fullmatch(pattern, module)) is not None:
            if "{stage}" in new:  # torchvision counts the stem, and what joins two stages, too
                new = new.replace("{stage}", str((int(found[1]) - (0 if "downsampling" in new else 1)) // 2))
            return found.expand(new) + (f".{kind}" if kind else "")
    raise ValueError(f"torchvision's ConvNeXt has no weight {name}; get convnext_small again")
