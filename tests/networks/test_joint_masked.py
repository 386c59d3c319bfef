"""Networks of joint blocks: published sizes, which layer of a text encoder they read, and the score of an image."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pipeline.code import Condition
from pipeline.components import build
from pipeline.networks.joint_masked_transformer import JointMaskedTransformer

ROOT = Path(__file__).parents[2]
CLIP = {"text_tokens": 77, "text_dim": 768, "text_layers": 2, "pooled_dim": 768}
COUNTED = {"maskgen_vq_l": 603.3e6, "maskgen_vq_xl": 1175.3e6, "maskgen_kl_l": 641.4e6, "maskgen_kl_xl": 1237.3e6}
SIZE = {"grid": [4], "vocab": 7, "num_classes": 0, "depth": 2, "width": 16, "heads": 2}
TEXT = {"text_tokens": 3, "text_dim": 4, "text_layers": 2, "pooled_dim": 5}


@pytest.mark.parametrize("name", COUNTED)
def test_sizes(name):
    """As counted here; the paper's counts are not among the known facts."""
    node = OmegaConf.to_container(OmegaConf.load(ROOT / f"configs/networks/{name}.yaml"))["generator"]["network"]
    code = {"grid": [128], "vocab": 8192} if "vq" in name else {"grid": [32], "dim": 16, "outputs": 2}
    with torch.device("meta"):
        model = build("networks", node, num_classes=0, **code, **CLIP)
    assert abs(sum(p.numel() for p in model.parameters()) / COUNTED[name] - 1) < 1e-3


def network(**arguments) -> JointMaskedTransformer:
    """With every weight random."""
    model = JointMaskedTransformer(**SIZE | TEXT | arguments)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def captions(batch: int = 2) -> Condition:
    generator = torch.Generator().manual_seed(1)
    text, pooled = torch.randn(batch, 3, 8, generator=generator), torch.randn(batch, 5, generator=generator)
    return Condition(None, text, torch.ones(batch, 3, dtype=torch.bool), pooled)


@torch.no_grad()
def test_the_stated_layer_alone_is_read():
    ids, masked = torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)
    for layer in (0, 1):
        model, condition = network(text_layer=layer), captions()
        before = model(ids, masked, condition)
        for other in (0, 1):
            changed = captions()
            changed.text[..., 4 * other : 4 * other + 4] += 1
            assert torch.equal(model(ids, masked, changed), before) == (other != layer)
        model.set_empty_text(captions(1))
        torch.testing.assert_close(model.text.null.features, captions(1).text[0, :, 4 * layer : 4 * layer + 4])
    with pytest.raises(ValueError, match="text_layer is 2, and the text encoder states 2 layers"):
        network(text_layer=2)


@torch.no_grad()
def test_a_score_is_read_where_there_is_one_and_no_guidance_drops_it():
    ids, masked = torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)
    model, condition = network(score_width=6, score=5.0), captions()
    before = model(ids, masked, condition)
    condition.score = torch.tensor([5.0, 7.0])
    scored = model(ids, masked, condition)
    torch.testing.assert_close(scored[0], before[0])
    assert not torch.allclose(scored[1], before[1], atol=1e-3)
    assert torch.equal(model.null(condition).score, condition.score)
    assert torch.equal(model.select(condition).score, condition.score)
    assert network().select(condition).score is None
