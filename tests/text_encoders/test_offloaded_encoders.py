"""Captions have the same features by encoders whose weights are offloaded."""

from pathlib import Path

import pytest
import torch
from support.captioned_pipeline import make_text_encoder
from support.offloading import WAYS
from support.tiny_text_models import CONFIGS, save_model

from pipeline.components import build
from pipeline.text_encoders.base import TextEncoder
from pipeline.text_encoders.minilm import Minilm

PROMPTS = ["a red heart", "", "the caption of a blue house"]


def make_encoder(kind: str, folder: Path) -> TextEncoder:
    if kind == "byte_transformer":
        return make_text_encoder()
    if kind == "minilm":
        return build("text_encoders", {"kind": kind, "tokens": 12, "layers": [2, -1]}).eval()
    save_model(folder / "model", kind)
    node = {"kind": "pretrained_text", "path": str(folder / "model"), "tokens": 12, "layers": [1, -1]}
    return build("text_encoders", node).eval()


@pytest.mark.parametrize("kind", ["byte_transformer", "minilm", *CONFIGS])
@pytest.mark.parametrize("way", WAYS)
def test_features_are_the_same_offloaded(kind, way, tmp_path):
    if kind == "minilm" and Minilm.lacks():
        pytest.skip(Minilm.lacks())
    encoder = make_encoder(kind, tmp_path)
    expected = encoder.encode(PROMPTS)
    WAYS[way](encoder, tmp_path / "weights")
    for _ in range(2):
        made = encoder.encode(PROMPTS)
        torch.testing.assert_close(made.text, expected.text, atol=1e-5, rtol=1e-5)
        assert torch.equal(made.text_mask, expected.text_mask)
        if expected.pooled is not None:
            torch.testing.assert_close(made.pooled, expected.pooled, atol=1e-5, rtol=1e-5)
