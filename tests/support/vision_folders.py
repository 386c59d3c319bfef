"""Folders of tiny vision models, as the hub has published ones."""

from pathlib import Path

import transformers as t

HALF = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE = HALF | {"image_size": 12, "patch_size": 4}


def save_models(folder: Path) -> dict[str, t.PreTrainedModel]:
    """A tiny model of each family, whole, as the hub has them."""
    text = HALF | {"vocab_size": 50, "max_position_embeddings": 8}
    whole = {
        "dinov2": t.Dinov2Model(t.Dinov2Config(**HALF | {"patch_size": 56, "image_size": 56})),
        "clip": t.CLIPModel(
            t.CLIPConfig(text_config=text, vision_config=IMAGE | {"projection_dim": 6}, projection_dim=6)
        ),
        "siglip": t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=IMAGE)),
    }
    for kind, model in whole.items():
        model.eval().save_pretrained(folder / kind)
    return whole
