"""Import of VFM-VAE's autoencoders: what shapes tell, what options state, and what is refused."""

import re
from pathlib import Path

import pytest
import torch
from golden_kinds import Case
from golden_kinds.vfm_vae import state_of
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from pipeline.code import Code
from pipeline.published import converted
from pipeline.tokenizers.pyramid import Pyramid

CASE = Case(Path(__file__).parents[1] / "golden" / "vfm_vae")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("siglip")
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(folder)
    return str(folder)


def published(*without: str) -> dict[str, Tensor]:
    patterns = [re.compile(pattern) for pattern in without]
    return {k: v for k, v in state_of(CASE, "G.").items() if not any(p.search(k) for p in patterns)}


def imported(state: dict[str, Tensor], start: str, *options: str) -> Pyramid:
    return converted("vfm_vae", state, [f"start={start}", "taps=[0,2,-1]", *options])["tokenizer"]


def test_shapes_and_keys_tell_every_argument(start):
    tokenizer = imported(published(), start)
    config = tokenizer.config
    assert (config.image_size, config.side, tokenizer.spec.dim) == (32, 8, 4)
    assert config.widths == [32, 16, 8, 4] and config.spatial == [12, 8, 8]
    assert config.attention == [1, 1, 0, 0] and config.depths == [4, 4, 4, 4]
    assert (config.tap_widths, config.code_width, config.style) == ([8, 8, 8], 16, 16)
    assert config.frozen_encoder["image_patch"] == 2 and config.noise and config.blur


def test_without_noise_blur_and_attention_and_with_the_size_stated(start):
    state = published(r"noise_(const|strength)", "blur_weight", "self_attns")
    config = imported(state, start, "image_size=64", "activation=silu").config
    assert not (config.noise or config.blur) and config.attention == [0, 0, 0, 0]
    assert (config.image_size, config.side, config.activation) == (64, 16, "silu")
    assert imported(state, start).config.image_size == 256


@torch.no_grad()
def test_a_level_finer_than_the_code_unfolds_its_channels(start):
    """A fourth code map, at twice the code's side: 1x1 to four times its channels, unfolded, and mixed."""
    state, width = published(), 4
    name = "synthesis.z_convs.3."
    state |= {f"{name}0.0.weight": torch.randn(16, 1, 3, 3), f"{name}0.1.weight": torch.randn(4 * width, 16, 1, 1)}
    state |= {f"{name}2.0.weight": torch.randn(width, width, 1, 1)}
    for place, channels in ((f"{name}0.2", 4 * width), (f"{name}2.1", width)):
        state |= {f"{place}.weight": torch.ones(channels), f"{place}.bias": torch.zeros(channels)}
    up = "synthesis.blocks.3.seperate_upsample_conv."
    state |= {f"{up}norm.weight": torch.ones(12), f"{up}norm.bias": torch.zeros(12)}
    state |= {f"{up}depthwise.weight": torch.randn(12, 1, 3, 3), f"{up}pointwise.weight": torch.randn(16, 12, 1, 1)}
    tokenizer = imported(state, start)
    assert tokenizer.config.spatial == [12, 8, 8, width] and tokenizer.decoder.spatial[3].unfold == 2
    assert tokenizer.decode(Code(z=torch.randn(1, 64, 4))).shape == (1, 3, 32, 32)
    fewer = {
        "0.1.weight": (width, 16, 1, 1),
        "0.2.weight": (width,),
        "0.2.bias": (width,),
        "2.0.weight": (width, 1, 1, 1),
    }
    state |= {name + key: torch.randn(shape) for key, shape in fewer.items()}  # unfolded to a quarter of them
    assert imported(state, start).config.mixed == [12, 8, 8, 1]


@torch.no_grad()
def test_more_blocks_in_projections_are_read(start):
    state = published()
    blocks = {k: v for k, v in state.items() if k.startswith("ldm_adapter.post_quant.blocks.0.")}
    more = {k.replace("blocks.0", "blocks.1"): v for k, v in blocks.items()}
    wide = {"attn.qkv.weight": (48, 16), "norm1.weight": (16,), "norm1.bias": (16,), "proj.weight": (16, 16)}
    wide |= {"norm3.weight": (16,), "norm3.bias": (16,)}
    for key, shape in wide.items():
        more[f"ldm_adapter.post_quant.blocks.1.{key}"] = torch.randn(shape)
    assert imported(state | more, start).config.projection_layers == [1, 2]


def test_statistics_and_mistakes(start, tmp_path):
    torch.save({"mean": torch.arange(4.0), "std": torch.full((4,), 2.0)}, tmp_path / "stats.pt")
    tokenizer = imported(published(), start, f"stats={tmp_path / 'stats.pt'}")
    assert tokenizer.mean.tolist() == [0, 1, 2, 3] and tokenizer.std.tolist() == [2] * 4
    for state, words in (
        (published() | {"synthesis.blocks.0.cross_attn.weight": torch.zeros(1)}, "1 unexpected keys"),
        (published("final_quant"), "not a VFM-VAE checkpoint: it has no ldm_adapter.final_quant"),
        (published(r"mapping\.mlp\.fc0"), "weights are missing from the checkpoint: decoder.mapping.hidden.weight"),
    ):
        with pytest.raises(ValueError, match=words):
            imported(state, start)
