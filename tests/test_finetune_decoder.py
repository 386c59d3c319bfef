"""`finetune_decoder` from a folder of pictures to what others load, and the same from a tokenizer of ours."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from support.stock_autoencoders import SIZE, STOCK

import run
from pipeline.features import judge
from pipeline.reporting.number_text import format_number
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder
from pipeline.tokenizers.pretrained import Pretrained

SMALL = [
    "name=mine",
    "data.source.path=pictures",
    f"data.size={SIZE}",
    "tokenizer.phases.main.losses.perceptual=null",
    "tokenizer.phases.main.weights.perceptual=null",
    "tokenizer.phases.main.adversary={critic: {kind: patch, width: 8, layers: 1}, start: 1}",
    "tokenizer.phases.main.loop={steps: 2, batch: 2, warmup: 0, lr: {tokenizer: 1.0e-2}, ema: 0.0}",
    "evaluate={features: [pixels], metrics: [psnr, reconstruction_frechet]}",
]
STOCK_START = "tokenizer.model={kind: pretrained, path: stock, dim: null, stride: null}"


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The working folder, with noise as pictures, and a judge that is trained for a moment only."""
    monkeypatch.setattr(judge, "fit", partial(judge.fit, steps=2, batch=8))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("pictures").mkdir()
    for number in range(20):
        Image.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(f"pictures/{number}.png")


def test_a_stock_autoencoder_comes_back_as_its_own_class_with_numbers_before_and_after(pictures, capsys):
    original = STOCK["kl"]().eval()
    original.save_pretrained("stock")
    assert run.main(["all", "finetune_decoder", *SMALL, STOCK_START]) == 0
    assert sorted(path.name for path in Path("runs/mine").iterdir() if path.is_dir()) == [
        "pipeline",
        "report",
        "tokenizer",
    ]
    numbers = json.loads(Path("runs/mine/report/metrics.json").read_text())
    assert numbers.keys() == {"psnr", "rfd_pixels"}
    for number in numbers.values():
        assert number["before"] != number["value"]
    page, card = Path("runs/mine/report/index.html").read_text(), Path("runs/mine/pipeline/README.md").read_text()
    assert "before training" in page and repr(numbers["psnr"]["before"]) in page
    assert format_number(numbers["psnr"]["before"], "dB") in card and "`stock/vae/` is a `AutoencoderKL`" in card
    with Image.open("runs/mine/report/reconstructions.png") as picture:
        assert picture.size[1] == 4 * (64 + 2) - 2, "originals, before, after and their difference"
    tokenizer = Pretrained.from_pretrained("runs/mine/pipeline/tokenizer")
    stock = AutoencoderKL.from_pretrained("runs/mine/pipeline/stock/vae")
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        assert torch.equal(stock.encode(images).latent_dist.mean, original.encode(images).latent_dist.mean)
        torch.testing.assert_close(stock(images).sample, tokenizer.decode(tokenizer.encode(images)), atol=1e-5, rtol=0)
    assert run.main(["export", "runs/mine", "exported"]) == 0
    assert sorted(path.name for path in Path("exported").iterdir()) == ["tokenizer", "vae"]
    assert run.main(["export", "runs/mine/pipeline", "again", "part=network"]) == 2
    assert "part=network: there is no network here; there are: tokenizer" in capsys.readouterr().err
    assert not Path("again").exists() and run.main(["export", "runs/mine", "exported"]) == 2
    assert run.main(["sweep", "runs/mine"]) == 2 and "has no generator" in capsys.readouterr().err


def test_a_tokenizer_of_ours_is_trained_further(pictures):
    own = ConvAutoencoder(SIZE, {"kind": "gaussian", "dim": 3}, width=8, groups=4, multipliers=[1, 2], blocks=1)
    own.save_pretrained("own/tokenizer")
    started = ["tokenizer.model=null", "tokenizer.start=own", "tokenizer.phases.main.weights.kl=0"]
    assert run.main(["train-tokenizer", "finetune_decoder", *SMALL, *started]) == 0
    trained = ConvAutoencoder.from_pretrained("runs/mine/tokenizer")
    moved = [name for name, weight in own.state_dict().items() if not torch.equal(weight, trained.state_dict()[name])]
    assert moved and {name.partition(".")[0] for name in moved} == {"decoder", "post_quant_conv"}
