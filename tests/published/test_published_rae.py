"""RAE's decoders convert whole, to what diffusers' own implementation of RAE computes, or not at all."""

from pathlib import Path

import pytest
import torch
import transformers
from diffusers import AutoencoderRAE
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from support.tiny_pipeline import randomised
from torch import Tensor

from pipeline.code import Code
from pipeline.commands.import_checkpoint import import_checkpoint
from pipeline.published import formats
from pipeline.published.rae import convert
from pipeline.tokenizers.representation import Representation

PARTS = {"to_q": "attention.query", "to_k": "attention.key", "to_v": "attention.value", "to_out.0": "output.dense"}


@pytest.fixture(scope="module")
def stock() -> AutoencoderRAE:
    """A small RAE of diffusers with drawn weights: 28 pixels in, four places of 16 pixels out."""
    sizes = {"encoder_hidden_size": 64, "encoder_num_hidden_layers": 2, "encoder_input_size": 28}
    decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4}
    made = AutoencoderRAE(**sizes, **decoder, decoder_intermediate_size=48)
    places = get_2d_sincos_pos_embed(32, 2, base_size=2)  # diffusers counts a side as 16, as it is in released ones
    made.decoder.decoder_pos_embed[0, 1:] = torch.as_tensor(places)
    return randomised(made, 1)


@pytest.fixture(scope="module")
def encoder(stock, tmp_path_factory) -> str:
    """The frozen half as the hub has it, with a last norm whose scale and shift are not used."""
    whole = transformers.Dinov2WithRegistersModel(stock.encoder.config)
    state = {name: value for name, value in stock.encoder.state_dict().items()}
    state |= {f"layernorm.{name}": torch.randn(64) for name in ("weight", "bias")}
    whole.load_state_dict(state)
    whole.save_pretrained(folder := tmp_path_factory.mktemp("encoder"))
    return str(folder)


def published(stock: AutoencoderRAE) -> dict[str, Tensor]:
    """The decoder under the key names of the released files."""
    state = {}
    for name, value in stock.decoder.state_dict().items():
        for ours, theirs in PARTS.items():
            name = name.replace(f".attention.{ours}.", f".attention.{theirs}.")
        state[name] = value
    return state | {"decoder_pos_embed": stock.decoder.decoder_pos_embed}


@torch.no_grad()
def test_the_converted_tokenizer_is_the_published_one(stock, encoder):
    tokenizer = convert(published(stock), start=encoder, heads=4)["tokenizer"]
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = stock.encode((images + 1) / 2).latent
    torch.testing.assert_close(tokenizer.encode(images).z, latents.flatten(2).mT, atol=1e-4, rtol=1e-4)
    z = torch.randn_like(latents)
    made = tokenizer.decode(Code(z=z.flatten(2).mT))
    torch.testing.assert_close(made, stock.decode(z).sample * 2 - 1, atol=1e-4, rtol=1e-4)
    assert tokenizer.config.frozen_encoder["source"] == encoder


@torch.no_grad()
def test_published_statistics_bring_codes_to_unit_scale(stock, encoder, tmp_path):
    stats = {"mean": torch.randn(64, 2, 2), "var": torch.rand(64, 2, 2) + 0.5}
    torch.save(stats, tmp_path / "stat.pt")
    tokenizer = convert(published(stock), start=encoder, heads=4, stats=str(tmp_path / "stat.pt"))["tokenizer"]
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    latents = stock.encode((images + 1) / 2).latent
    expected = (latents - stats["mean"]) / (stats["var"] + 1e-5).sqrt()
    torch.testing.assert_close(tokenizer.encode(images).z, expected.flatten(2).mT, atol=1e-4, rtol=1e-4)
    torch.save({"mean": torch.zeros(64, 3, 3), "var": torch.ones(64, 3, 3)}, tmp_path / "stat.pt")
    with pytest.raises(ValueError, match=r"stat.pt is of \[9, 64\] values, the code of \[4, 64\]"):
        convert(published(stock), start=encoder, heads=4, stats=str(tmp_path / "stat.pt"))


@torch.no_grad()
def test_the_command_writes_a_folder_that_needs_nothing_else(stock, encoder, tmp_path):
    torch.save(published(stock), tmp_path / "model.pt")
    out = tmp_path / "out"
    import_checkpoint(["rae", str(tmp_path / "model.pt"), str(out), f"start={encoder}", "heads=4"])
    Path(encoder, "config.json").rename(hidden := tmp_path / "config.json")
    again = Representation.from_pretrained(out)
    hidden.rename(Path(encoder, "config.json"))
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = stock.decode(stock.encode((images + 1) / 2).latent).sample * 2 - 1
    torch.testing.assert_close(again(images).images, expected, atol=1e-4, rtol=1e-4)
    assert "rae" in formats()


def test_what_is_no_rae_decoder_is_refused(stock, encoder):
    state = published(stock)
    lost = {name: value for name, value in state.items() if name != "decoder_layers.1.output.dense.bias"}
    for wrong, words in (
        (state | {"encoder.weight": torch.zeros(1)}, "1 unexpected keys in the checkpoint: encoder.weight"),
        (lost, "blocks.1.down.bias"),
        ({"weight": torch.zeros(2)}, "not a RAE checkpoint"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            convert(wrong, start=encoder, heads=4)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="heads of width 32"):
        convert(state, start=encoder)
