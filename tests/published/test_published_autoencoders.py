"""The import of LDM-style autoencoders: arguments read off the shapes, training's keys dropped, nothing else lost."""

import pytest
import torch
from torch import Tensor

from pipeline.commands.import_checkpoint import import_checkpoint
from pipeline.published import formats, ldm, vavae
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder

SHAPES = {
    "sd_vae": {"multipliers": [1, 2, 4, 4], "bottleneck": {"kind": "gaussian", "dim": 4}},
    "kl_f16": {"multipliers": [1, 1, 2], "attention": [2], "bottleneck": {"kind": "gaussian", "dim": 16}},
    "embedded": {"multipliers": [1, 2], "blocks": 1, "bottleneck": {"kind": "gaussian", "dim": 3}, "z_channels": 5},
    "wide_decoder": {"multipliers": [1, 2], "decoder_width": 16, "bottleneck": {"kind": "gaussian", "dim": 2}},
    "no_attention": {"multipliers": [1], "middle_attention": False, "bottleneck": {"kind": "gaussian", "dim": 2}},
}
WORDS = {  # of our keys, and LDM's for them
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "block",
    "attentions": "attn",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_out.0": "proj_out",
    "to_": "",
    "down_blocks": "down",
}


def as_ldm(key: str, levels: int) -> str:
    for i in range(levels):
        key = key.replace(f"up_blocks.{i}.", f"up.{levels - 1 - i}.")
    for ours, theirs in WORDS.items():
        key = key.replace(ours, theirs)
    return key


def checkpoint(**arguments) -> tuple[ConvAutoencoder, dict[str, Tensor]]:
    """A tokenizer, and its weights as an LDM file has them."""
    tokenizer = ConvAutoencoder(image_size=256, width=8, **arguments).eval()
    state = {}
    for key, value in tokenizer.state_dict().items():
        if key not in ("mean", "std"):
            matrix = ".attentions." in key and value.dim() == 2
            state[as_ldm(key, len(arguments["multipliers"]))] = value[:, :, None, None] if matrix else value
    return tokenizer, state


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_every_argument_is_read_off_the_shapes(shape):
    tokenizer, state = checkpoint(**SHAPES[shape])
    found = ldm.convert(state)["tokenizer"]
    public = [name for name in tokenizer.config if not name.startswith("_")]
    assert {n: found.config[n] for n in public} == {n: tokenizer.config[n] for n in public}
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(found(images).images, tokenizer(images).images)


def test_training_keys_stay_behind_and_others_are_errors():
    _, state = checkpoint(**SHAPES["embedded"])
    of_training = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(1)}
    ldm.convert(state | of_training)
    of_alignment = {"linear_proj.weight": torch.zeros(1), "foundation_model.model.norm.weight": torch.zeros(1)}
    vavae.convert(state | of_training | of_alignment)
    with pytest.raises(ValueError, match="unexpected.*linear_proj.weight"):
        ldm.convert(state | of_alignment)
    with pytest.raises(ValueError, match="unexpected.*encoder.extra"):
        vavae.convert(state | {"encoder.extra.weight": torch.zeros(1)})
    lacking = {key: value for key, value in state.items() if key != "decoder.mid.attn_1.k.bias"}
    with pytest.raises(ValueError, match="missing.*decoder.mid_block.attentions.0.to_k.bias"):
        ldm.convert(lacking)


def test_other_checkpoints_are_refused_by_name():
    with pytest.raises(ValueError, match="not a latent diffusion autoencoder checkpoint"):
        ldm.convert({"blocks.0.weight": torch.zeros(1)})
    _, state = checkpoint(**SHAPES["embedded"])
    state["quant_conv.weight"] = state["quant_conv.weight"][:3]
    with pytest.raises(ValueError, match="no Gaussian posterior"):
        ldm.convert(state)


@torch.no_grad()
def test_the_command_writes_a_folder_that_loads(tmp_path):
    assert {"ldm", "vavae"} <= set(formats()) and "autoencoder_trunk" not in formats()
    tokenizer, state = checkpoint(**SHAPES["kl_f16"])
    torch.save({"state_dict": state | {"linear_proj.weight": torch.zeros(1)}}, tmp_path / "file.pt")
    import_checkpoint(["vavae", str(tmp_path / "file.pt"), str(tmp_path / "out")])
    images = torch.rand(1, 3, 16, 16)
    found = ConvAutoencoder.from_pretrained(tmp_path / "out")
    assert torch.equal(found(images).images, tokenizer(images).images)
