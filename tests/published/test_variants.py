"""Sizes and switches that no published checkpoint has are imported too: from the weights, or by KEY=VALUE."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.code import Condition
from pipeline.components import build
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.nn.embeddings import fixed_positions
from pipeline.published import OPTIONS, catalogue, converted, formats, options_of

OURS_TO_THEIRS = {  # of the transformers on noisy codes
    r"patch_embedding\.(.*)": r"x_embedder.proj.\1",
    r"time_embedding\.up\.(.*)": r"t_embedder.mlp.0.\1",
    r"time_embedding\.down\.(.*)": r"t_embedder.mlp.2.\1",
    r"label_embedding\.weight": r"y_embedder.embedding_table.weight",
    r"head\.modulation\.(.*)": r"final_layer.adaLN_modulation.1.\1",
    r"head\.norm\.(.*)": r"final_layer.norm_final.\1",
    r"head\.linear\.(.*)": r"final_layer.linear.\1",
    r"(blocks\.\d+)\.attention\.(qkv|proj)\.(.*)": r"\1.attn.\2.\3",
    r"(blocks\.\d+)\.attention\.query_norm\.(.*)": r"\1.attn.q_norm.\2",
    r"(blocks\.\d+)\.attention\.key_norm\.(.*)": r"\1.attn.k_norm.\2",
    r"(blocks\.\d+\.norm\d\..*)": r"\1",
    r"(blocks\.\d+)\.modulation\.(.*)": r"\1.adaLN_modulation.1.\2",
}


def transformer(**settings: Any) -> DiffusionTransformer:
    """A tiny transformer whose parameters are all random, with the time of LightningDiT."""
    sizes = {"grid": [4, 4], "dim": 3, "num_classes": 5, "depth": 2, "width": 32, "heads": 2}
    times = {"time_scale": 1.0, "time_direction": "data"}
    network = DiffusionTransformer(**sizes | times | settings).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    return network


def published(network: DiffusionTransformer, shifts: bool = True, null_row: bool = True) -> dict[str, Tensor]:
    """The weights under LightningDiT's keys; without `shifts` those rows, which must be zero, are left out."""
    config, state = network.config, {}
    swiglu = config.feed_forward == "swiglu"
    names = OURS_TO_THEIRS | {
        r"(blocks\.\d+)\.feed_forward\.up\.(.*)": r"\1.mlp.w12.\2" if swiglu else r"\1.mlp.fc1.\2",
        r"(blocks\.\d+)\.feed_forward\.down\.(.*)": r"\1.mlp.w3.\2" if swiglu else r"\1.mlp.fc2.\2",
    }
    for key, value in network.state_dict().items():
        pattern = next(pattern for pattern in names if re.fullmatch(pattern, key))
        state[re.sub(pattern, names[pattern], key)] = value.clone()
    patch = config.patch_size
    kernel = state["x_embedder.proj.weight"].unflatten(1, (patch, patch, config.dim))
    state["x_embedder.proj.weight"] = kernel.permute(0, 3, 1, 2).contiguous()
    if not shifts:
        for key in [key for key in state if key.startswith("blocks.") and "adaLN" in key]:
            parts = state[key].chunk(6)
            state[key] = torch.cat([parts[1], parts[2], parts[4], parts[5]])
    if not null_row:
        state["y_embedder.embedding_table.weight"] = state["y_embedder.embedding_table.weight"][:-1]
    state["pos_embed"] = fixed_positions([size // patch for size in config.grid], config.width)[None]
    if network.cosines is not None:
        state |= {"feat_rope.freqs_cos": network.cosines, "feat_rope.freqs_sin": network.sines}
    return state


def answers(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = network.state_shape[0]
    z = torch.randn(3, rows, network.config.dim, generator=generator)
    with torch.no_grad():
        return network(z, torch.tensor([0.1, 0.5, 0.9]), Condition(labels=torch.tensor([0, 4, 2])))


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": [4, 6]},
        {"grid": [6, 4], "patch_size": 2},
        {"grid": [2, 8], "position": "rotary_and_fixed"},
        {"feed_forward": "swiglu", "feed_forward_ratio": 3.0},
        {"feed_forward_ratio": 85 / 32},
        {"norm": "rms", "query_key_norm": True},
        {"query_key_norm": "layer"},
        {"depth": 3, "width": 48, "heads": 4, "num_classes": 7},
    ],
    ids=str,
)
def test_the_weights_tell_sizes_and_switches(settings):
    network = transformer(**settings)
    imported = converted("lightningdit", published(network), [f"heads={network.config.heads}"])["network"]
    torch.testing.assert_close(answers(imported), -answers(network), atol=1e-6, rtol=0)
    assert {name: imported.config[name] for name in settings if name != "feed_forward_ratio"} == {
        name: value for name, value in settings.items() if name != "feed_forward_ratio"
    }


def test_blocks_without_shifts_shift_by_zero():
    network = transformer(norm="rms", feed_forward="swiglu")
    with torch.no_grad():
        for block in network.blocks:
            for parameter in block.modulation.parameters():
                parts = parameter.chunk(6)
                parts[0].zero_(), parts[3].zero_()
    state = published(network, shifts=False)
    assert state["blocks.0.adaLN_modulation.1.weight"].shape == (4 * 32, 32)
    imported = converted("lightningdit", state, ["heads=2"])["network"]
    torch.testing.assert_close(answers(imported), -answers(network), atol=1e-6, rtol=0)


def test_a_label_table_without_null_row_is_said_by_condition_drop():
    network = transformer()
    state = published(network, null_row=False)
    imported = converted("lightningdit", state, ["heads=2", "condition_drop=0"])["network"]
    assert imported.config.num_classes == 5 and imported.config.condition_drop == 0
    torch.testing.assert_close(answers(imported), -answers(network), atol=1e-6, rtol=0)
    assert not imported.label_embedding.weight[-1].any()


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_maskgit_autoencoder_has_as_many_blocks_in_the_middle_as_on_a_level(blocks):
    bottleneck = {"kind": "vector_quantize", "dim": 8, "vocab": 12, "unit_norm": False}
    node = {"kind": "maskgit_vqgan", "bottleneck": bottleneck, "width": 32, "multipliers": [1, 2], "blocks": blocks}
    tokenizer = build("tokenizers", node, image_size=8).eval()
    state = {}
    for key, value in tokenizer.state_dict().items():
        if key in ("mean", "std"):
            continue
        half, _, rest = key.partition(".")
        if key == "neck.codebook":
            key = "quantize.embedding.weight"
        elif match := re.fullmatch(r"levels\.(\d)\.(\d+)\.(conv)\.(.*)", rest):
            key = f"decoder.up.{1 - int(match[1])}.upsample_conv.{match[4]}"
        elif match := re.fullmatch(r"levels\.(\d)\.(\d+)\.(.*)", rest):
            level = int(match[1]) if half == "encoder" else 1 - int(match[1])
            place = "down" if half == "encoder" else "up"
            key = f"{half}.{place}.{level}.block.{match[2]}.{match[3].replace('shortcut', 'nin_shortcut')}"
        else:
            key = key.replace("middle", "mid")
        state[key] = value
    assert sum(key.startswith("decoder.mid.") and key.endswith("conv1.weight") for key in state) == blocks
    imported = converted("maskgit_vqgan", state, [])["tokenizer"]
    images = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(imported(images).images, tokenizer(images).images)


def test_every_option_of_every_format_is_explained():
    text = catalogue()
    options = {option for module in formats().values() for option in options_of(module.convert)}
    assert options == set(OPTIONS)
    for name, module in formats().items():
        assert f"{name} " in text and module.WHAT in text
        assert all(f"{option}=" in text for option in options_of(module.convert))


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(ValueError, match="import lightningdit: there is no option 'head'; did you mean 'heads'?"):
        converted("lightningdit", {}, ["head=2"])
    with pytest.raises(ValueError, match="import lightningdit: heads: 'two' is not a whole number"):
        converted("lightningdit", {}, ["heads=two"])
    with pytest.raises(ValueError, match="import: there is no format 'lightingdit'; did you mean 'lightningdit'?"):
        converted("lightingdit", {}, [])
