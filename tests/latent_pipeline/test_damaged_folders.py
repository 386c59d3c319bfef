"""A saved pipeline whose files are not what was saved is refused by the name of the file."""

import shutil

import pytest
import torch
from support.tiny_pipeline import generators, make_pipeline, randomised

from pipeline import LatentPipeline

READ = [
    "model_index.json",
    "checksums.json",
    *("tokenizer/config.json", "tokenizer/diffusion_pytorch_model.tessera.safetensors"),
    *("network/config.json", "network/diffusion_pytorch_model.tessera.safetensors"),
    "objective/scheduler_config.json",
]


def codes(pipe: LatentPipeline) -> torch.Tensor:
    return pipe([1], generator=generators(5), output_type="latent").images


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_pipeline().save_pretrained(folder)
    return folder


def damaged(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return {"cut": content[:middle], "emptied": b"", "flipped": flipped}[how]


@pytest.mark.parametrize("how", ["cut", "emptied", "flipped"])
def test_every_file_that_is_read_is_checked(saved, tmp_path, how):
    assert sorted(READ) == sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file())
    for name in READ:
        shutil.copytree(saved, tmp_path / "copy", dirs_exist_ok=True)
        file = tmp_path / "copy" / name
        file.write_bytes(damaged(file.read_bytes(), how))
        with pytest.raises(ValueError, match=r"\.(json|safetensors) is damaged") as error:
            LatentPipeline.from_pretrained(tmp_path / "copy")
        assert name in str(error.value) or name == "checksums.json", error.value


def test_what_was_saved_again_or_added_or_is_a_page_is_loaded(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    pipe = LatentPipeline.from_pretrained(folder)
    (folder / "README.md").write_text("mine")
    randomised(pipe.network, 7)
    pipe.save_pretrained(folder)
    pipe.save_pretrained(folder, variant="again")
    (folder / "README.md").write_text("mine, edited")
    (folder / "network" / "notes.txt").write_text("of a user")
    again = LatentPipeline.from_pretrained(folder)
    assert torch.equal(codes(pipe), codes(again))
    assert not torch.equal(codes(pipe), codes(LatentPipeline.from_pretrained(saved)))


def test_what_was_damaged_before_is_not_made_good_by_saving_something_else(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    pipe = LatentPipeline.from_pretrained(folder)
    weights = folder / "tokenizer" / "diffusion_pytorch_model.tessera.safetensors"
    weights.write_bytes(damaged(weights.read_bytes(), "flipped"))
    pipe.save_pretrained(folder, variant="fp16")
    with pytest.raises(ValueError, match="tokenizer/diffusion_pytorch_model.tessera.safetensors is damaged"):
        LatentPipeline.from_pretrained(folder)
