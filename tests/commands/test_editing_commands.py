"""`edit` and `reconstruct`: pictures of files through a saved pipeline or tokenizer into new files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from support.tiny_pipeline import make_pipeline

from pipeline import LatentPipeline
from pipeline.images.stored_pixels import to_pixels
from pipeline.metrics.psnr import psnr
from run import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder and pictures beside it, in the current folder of every test."""
    root = tmp_path_factory.mktemp("editing")
    make_pipeline().save_pretrained(root / "pipe")
    generator = np.random.default_rng(1)
    for name in ("a.png", "b.jpg", "inner/c.webp", "inner/d.png"):
        path = root / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(generator.integers(0, 255, (4, 6, 3), np.uint8))
        small.resize((48, 32)).save(path)
    (root / "pictures/broken.png").write_text("nothing")
    mask = Image.new("L", (48, 32))
    mask.paste(255, (0, 0, 48, 16))
    mask.save(root / "mask.png")
    return root


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def said(capsys: pytest.CaptureFixture, *words: str, status: int = 0) -> str:
    assert main(list(words)) == status
    shown = capsys.readouterr()
    return shown.err if status else shown.out


def test_a_picture_is_edited_as_the_pipeline_does_it(capsys):
    words = ("edit", "pipe", "image=pictures/a.png", "label=zero", "seed=4", "mask=mask.png", "guidance=1.5", "steps=2")
    assert "new.png: 16x16 pixels" in said(capsys, *words, "out=new.png")
    pipe = LatentPipeline.from_pretrained("pipe")
    generator = torch.Generator().manual_seed(4)
    given = {"image": Image.open("pictures/a.png"), "mask": Image.open("mask.png"), "num_inference_steps": 2}
    expected = pipe("zero", generator=generator, guidance_scale=1.5, **given).images[0]
    assert np.array_equal(np.asarray(Image.open("new.png")), np.asarray(expected))
    assert "new.png is there already" in said(capsys, *words, "out=new.png", status=2)
    said(capsys, "edit", "pipe", "image=pictures/b.jpg", "label=1", "strength=0.5", "steps=1")
    assert Path("b-edited.png").is_file()


@pytest.mark.parametrize(
    "words, message",
    [
        (["image=none.png", "label=1"], "image=none.png: No such file"),
        (["image=pictures/broken.png", "label=1"], "broken.png: not an image Pillow can read"),
        (["image=pictures/a.png", "label=1", "mask=none.png"], "mask=none.png: No such file"),
        (["image=pictures/a.png", "label=1", "strength=2"], "strength"),
        (["image=pictures/a.png", "label=1", "out=x.jpg"], "no PNG file"),
        (["image=pictures/a.png", "lable=1"], "did you mean 'label'"),
        (["image=pictures/a.png", "out=y.png"], "state label=0 to 3, or a name"),
        (["label=1"], "image is missing"),
    ],
)
def test_edits_that_do_not_fit_are_refused_in_one_line(words, message, capsys):
    error = said(capsys, "edit", "pipe", *words, status=2)
    assert message in error.splitlines()[-1] and not list(Path().glob("[xy].*"))


@torch.no_grad()
def test_pictures_are_reconstructed_with_their_names(folder, capsys):
    shown = said(capsys, "reconstruct", "pipe", "rebuilt", "images=pictures", "batch=3")
    names = ["a.png", "b.jpg", "inner/c.webp", "inner/d.png"]
    files = sorted(str(path.relative_to("rebuilt")) for path in Path("rebuilt").rglob("*.png"))
    assert files == ["a.png", "b.png", "inner/c.png", "inner/d.png"]
    pipe = LatentPipeline.from_pretrained("pipe")
    pixels = pipe.encode([Image.open(f"pictures/{name}") for name in names])
    rebuilt = to_pixels(pipe.decode(pixels))
    for file, expected in zip(files, rebuilt):
        found = np.asarray(Image.open(f"rebuilt/{file}"))
        assert np.abs(found.astype(int) - expected).max() <= 1  # batches of other sizes round otherwise
    wide = [Image.open(f"pictures/{name}").convert("RGB").resize((24, 16), Image.Resampling.BOX) for name in names]
    given = torch.tensor(np.stack([np.asarray(one)[:, 4:20] for one in wide])).movedim(-1, 1)
    values = psnr(given.float(), torch.tensor(rebuilt).movedim(-1, 1).float())
    for name, value in zip(names, values):
        line = next(line for line in shown.splitlines() if line.strip().startswith(name))
        assert abs(float(line.split()[-2]) - value) < 0.05
    assert f"mean PSNR of 4 images: {values.mean():.2f} dB"[:27] in shown
    assert "not empty" in said(capsys, "reconstruct", "pipe", "rebuilt", "images=pictures", status=2)


def test_a_tokenizer_alone_and_a_stock_autoencoder_reconstruct(capsys):
    assert "1 images" in said(capsys, "reconstruct", "pipe/tokenizer", "one", "images=pictures/inner/d.png")
    assert Path("one/d.png").is_file()
    stock = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",), layers_per_block=1, mid_block_add_attention=False,
    )  # fmt: skip
    stock.save_pretrained("stock")
    assert "state size=PIXELS" in said(capsys, "reconstruct", "stock", "two", "images=pictures", status=2)
    assert "4 images" in said(capsys, "reconstruct", "stock", "two", "images=pictures", "size=[8,16]")
    assert Image.open("two/a.png").size == (16, 8)


@pytest.mark.parametrize(
    "words, message",
    [
        (["pipe", "out"], "images is missing"),
        (["pipe", "images=pictures"], "needs a tokenizer and a folder"),
        (["nowhere", "out", "images=pictures"], "neither a run nor the folder"),
        (["pipe", "out", "images=none"], "holds no picture"),
        (["pipe", "out", "images=twins"], "a.jpg and a.png would both be a.png"),
        (["pipe", "out", "images=pictures/broken.png"], "not one picture"),
        (["pipe", "out", "images=pictures", "size=32"], "images of 16 pixels; leave size out"),
    ],
)
def test_reconstructions_that_do_not_fit_are_refused(words, message, capsys):
    Path("twins").mkdir(exist_ok=True)
    for ending in ("png", "jpg"):
        Image.new("RGB", (8, 8)).save(f"twins/a.{ending}")
    assert message in said(capsys, "reconstruct", *words, status=2) and not Path("out").exists()
