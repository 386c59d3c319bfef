"""Prompts of a file or of a benchmark are sampled into a folder, which tells the prompt of every image."""

import json
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image
from support.captioned_pipeline import make_captioned_decoder
from support.tiny_pipeline import generators

from pipeline import LatentPipeline
from pipeline.sampling.from_folder import sample_folder
from pipeline.sampling.many_images import read_prompts
from pipeline.sampling.prompt_files import read_prompt_set
from run import main

ACCELERATOR = Accelerator(cpu=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A pipeline, one without its text encoder, and files of prompts."""
    folder = tmp_path_factory.mktemp("prompts")
    pipe = make_captioned_decoder()
    pipe.save_pretrained(folder / "pipe")
    LatentPipeline.from_pipe(pipe, text_encoder=None).save_pretrained(folder / "parts")
    (folder / "lines.txt").write_text("a red fox\n\n an owl: at night \n")
    records = [{"tag": "single_object", "include": [], "prompt": f"a photo of a {name}"} for name in ("bench", "cow")]
    (folder / "geneval.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, text in (("12", "A long prompt.\n"), ("partiprompts3", "Another one.")):
        path = folder / "dpg" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def sample(root: Path, **settings) -> Path:
    return sample_folder(str(root / "pipe"), {"labels": 1, "steps": 1, "batch": 3} | settings, ACCELERATOR)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_every_image_is_of_its_line(root, tmp_path):
    out = sample(root, prompts=str(root / "lines.txt"), each=2, out=str(tmp_path / "out"))
    expected = ["a red fox", "a red fox", "an owl: at night", "an owl: at night"]
    assert read_prompts(out) == expected
    lines = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert lines[3] == {"image": "000003.png", "prompt": expected[3], "label": 1, "seed": 3}
    pipe = LatentPipeline.from_pretrained(root / "pipe")
    alone = pipe(1, prompt=expected[2], generator=generators(2), num_inference_steps=1).images[0]
    assert abs(np.asarray(alone).astype(int) - pixels(out / "000002.png")).max() <= 1
    with np.load(out / "samples.npz") as archive:
        assert archive["arr_0"].shape == (4, 16, 16, 3) and archive["arr_1"].tolist() == [1] * 4
    assert Image.open(out / "grid.png").height > 96  # captions below
    with pytest.raises(ValueError, match="holds images with prompts="):
        sample(root, prompts=str(root / "geneval.jsonl"), images=4, each=2, out=str(out))


def test_the_layout_of_geneval(root, tmp_path):
    out = sample(root, prompts=f"geneval:{root / 'geneval.jsonl'}", out=str(tmp_path / "out"))
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert folders == ["00000", "00001"]
    assert json.loads((out / "00001/metadata.jsonl").read_text())["prompt"] == "a photo of a cow"
    assert sorted(path.name for path in (out / "00001/samples").iterdir()) == [f"{i:04d}.png" for i in range(4)]
    whole = pixels(out / "00001/grid.png")
    assert whole.shape == (32, 32, 3) and np.array_equal(whole[16:, :16], pixels(out / "00001/samples/0002.png"))
    with np.load(out / "samples.npz") as archive:
        assert np.array_equal(archive["arr_0"][6].astype(int), pixels(out / "00001/samples/0002.png"))
    missing = out / "00000/samples/0003.png"
    before = pixels(missing)
    missing.unlink()
    again = sample(root, prompts=f"geneval:{root / 'geneval.jsonl'}", out=str(out))
    assert again == out and abs(pixels(missing) - before).max() <= 1


def test_the_layout_of_dpg_bench(root, tmp_path):
    out = sample(root, prompts=f"dpg:{root / 'dpg'}", out=str(tmp_path / "out"))
    assert read_prompts(out)[:5] == ["A long prompt."] * 4 + ["Another one."]
    whole = pixels(out / "partiprompts3.png")
    assert whole.shape == (32, 32, 3) and np.array_equal(whole[:16, 16:], pixels(out / "samples/000005.png"))
    assert (out / "12.png").is_file()


def test_the_command_line(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["sample", str(root / "pipe"), "out", "prompt=a fox: red, yes", "labels=[0,1]", "steps=1"]
    assert main(words) == 0
    assert "2 images, grid.png, samples.npz, prompts.jsonl" in capsys.readouterr().out
    assert read_prompts(tmp_path / "out") == ["a fox: red, yes"] * 2
    picture = str(tmp_path / "out/000000.png")
    words = ["edit", str(root / "parts"), f"image={picture}", "label=0", "prompt=an owl", "steps=1"]
    assert main(words) == 2
    assert "has no text encoder, and names none" in capsys.readouterr().err
    assert main([*words, f"text_encoder={root / 'pipe'}"]) == 0
    assert Path("000000-edited.png").is_file()
    assert main(["sample", str(root / "pipe"), "other", "labels=0"]) == 2
    assert 'state prompt="..."' in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, match",
    [("\n \n", "there is no prompt in it"), (b"\xff\xfe", "no text in UTF-8"), (None, "there is no file")],
)
def test_files_without_prompts_are_refused(text, match, tmp_path):
    path = tmp_path / "prompts.txt"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=match):
        read_prompt_set(str(path))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"caption": "b"}\n')
    with pytest.raises(ValueError, match='line 2 has no text under "prompt"'):
        read_prompt_set(f"geneval:{tmp_path / 'prompts.jsonl'}")
