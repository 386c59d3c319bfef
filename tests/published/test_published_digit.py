"""DiGIT's second generator becomes a tokenizer, with the pixel tokenizer whose ids it writes and its frozen encoder."""

from pathlib import Path

import pytest
import torch
from contracts import images_of, randomised
from safetensors.torch import load_file
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from pipeline.components import build
from pipeline.published import converted

STATE = Path(__file__).parents[1] / "golden" / "digit_stage2" / "state.safetensors"
SIZES = {"width": 8, "multipliers": [1, 1, 1], "blocks": 1, "groups": 4, "patch_size": 4, "middle_attention": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Of a DINOv2 as wide as the centroids, and of pixel tokenizers of 20 ids and of 21."""
    root = tmp_path_factory.mktemp("digit")
    sizes = {"hidden_size": 10, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2}
    config = Dinov2WithRegistersConfig(**sizes, image_size=28, patch_size=14)
    Dinov2WithRegistersModel(config).save_pretrained(root / "dinov2")
    for vocab in (20, 21):
        neck = {"kind": "vector_quantize", "dim": 4, "vocab": vocab}
        node = {"kind": "conv_autoencoder", "bottleneck": neck, **SIZES}
        randomised(build("tokenizers", node, image_size=32)).save_pretrained(root / f"pixels_{vocab}")
    return {name: str(root / name) for name in ("dinov2", "pixels_20", "pixels_21")}


def test_the_tokenizer_has_all_three_and_makes_images(folders, tmp_path):
    options = [f"tokenizer={folders['pixels_20']}", f"start={folders['dinov2']}", "heads=3"]
    tokenizer = converted("digit_pixels", load_file(STATE), options)["tokenizer"]
    assert tokenizer.spec.grid == (2, 2) and tokenizer.spec.vocab == 24 and tokenizer.config.special_ids == 4
    with torch.no_grad():
        code = tokenizer.encode(images_of(32))
        h = tokenizer.encoder(images_of(32))[-1].flatten(2).mT
        nearest = torch.cdist(h, load_file(STATE)["centroids"].T).argmin(dim=-1)
        assert torch.equal(code.ids, nearest)
        images = tokenizer.decode(code)
    tokenizer.save_pretrained(tmp_path / "again")
    again = type(tokenizer).from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        assert torch.equal(again.decode(again.encode(images_of(32))), images)


def test_a_pixel_tokenizer_of_other_ids_is_refused(folders):
    options = [f"tokenizer={folders['pixels_21']}", f"start={folders['dinov2']}", "heads=3"]
    with pytest.raises(ValueError, match="these weights write 20 ids, and .* has 21; name another") as refusal:
        converted("digit_pixels", load_file(STATE), options)
    assert "\n" not in str(refusal.value)
