"""A stock autoencoder whose decoder is trained further leaves as its own class, with an encoder that has not moved."""

import json
from typing import Any

import diffusers
import pytest
import torch
from support.stock_autoencoders import SIZE, STOCK
from torch import Tensor, nn

from pipeline.commands.export import export
from pipeline.components import build
from pipeline.draws import StepDraws
from pipeline.images.reading import ImageBatch
from pipeline.recipes.loops import Loop
from pipeline.recipes.tokenizer_training import Phase
from pipeline.tokenizers.pretrained import Pretrained
from pipeline.training.reconstruction import Reconstruction

LOOP = Loop(steps=3, batch=2, lr={"tokenizer": 1e-2})


def train(tokenizer: Pretrained, images: Tensor, **phase: Any) -> None:
    """A few steps of AdamW on the terms of a phase."""
    settings = Phase(**{"loop": LOOP, "weights": {"pixel": 1.0}} | phase)
    task = Reconstruction(tokenizer.train(), settings, {"pixel": build("losses", {"kind": "pixel"})})
    optimizer = torch.optim.AdamW([p for p in tokenizer.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    for step in range(LOOP.steps):
        draws = StepDraws(0, step, slice(0, 2), 2, torch.device("cpu"))
        ((_, terms),) = task.turns(ImageBatch(images, None), draws, step)
        sum(terms.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    tokenizer.eval()


def encoded(stock: nn.Module, images: Tensor) -> Tensor:
    (output,) = stock.encode(images, return_dict=False)
    return output.parameters if hasattr(output, "parameters") else output


def settings_of(stock: Any) -> dict[str, Any]:
    return {name: value for name, value in json.loads(stock.to_json_string()).items() if name[0] != "_"}


@pytest.mark.parametrize("kind", STOCK)
def test_a_trained_decoder_leaves_as_its_own_class_and_the_encoder_is_unchanged_to_the_bit(kind, tmp_path):
    original, images = STOCK[kind]().eval(), torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    original.save_pretrained(tmp_path / "stock")
    tokenizer = Pretrained(SIZE, str(tmp_path / "stock"))
    train(tokenizer, images, train="decoder")
    tokenizer.save_pretrained(tmp_path / "trained")
    export([str(tmp_path / "trained"), str(tmp_path / "out"), "part=vae"])
    stock = getattr(diffusers, type(original).__name__).from_pretrained(tmp_path / "out")
    assert settings_of(stock) == settings_of(original)
    with torch.no_grad():
        assert torch.equal(encoded(stock, images), encoded(original, images))
        code = tokenizer.encode(images)
        maps = tokenizer.denormalize(code.z).mT.unflatten(2, tokenizer.spec.grid)
        before, made = (model.decode(maps, return_dict=False)[0] for model in (original, stock))
        ours = tokenizer.decode(code)
    torch.testing.assert_close(made * 2 - 1 if kind == "rae" else made, ours, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(made, before, atol=1e-3)
    weights, trained = original.state_dict(), stock.state_dict()
    moved = {name.partition(".")[0] for name, weight in weights.items() if not torch.equal(weight, trained[name])}
    assert moved == {"decoder", "post_quant_conv"} & {name.partition(".")[0] for name in weights}


def test_the_whole_autoencoder_is_trained_with_its_divergence(tmp_path):
    STOCK["kl"]().save_pretrained(tmp_path)
    tokenizer, images = Pretrained(SIZE, str(tmp_path), divergence=True), torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    before = {name: weight.clone() for name, weight in tokenizer.state_dict().items()}
    train(tokenizer, images, train="all", weights={"pixel": 1.0, "kl": 1e-3})
    moved = [name for name, weight in tokenizer.state_dict().items() if not torch.equal(weight, before[name])]
    assert {name.split(".")[1] for name in moved} == {"encoder", "quant_conv", "post_quant_conv", "decoder"}
    STOCK["tiny"]().save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match="^divergence: a AutoencoderTiny has no posterior; leave it out"):
        Pretrained(SIZE, str(tmp_path / "tiny"), divergence=True)
