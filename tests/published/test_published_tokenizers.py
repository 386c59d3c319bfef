"""The import of tokenizers whose golden cases lie in this tree: whole files alone, and folders that load."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from golden_kinds import Case
from safetensors.torch import save_file

from pipeline.commands.import_checkpoint import import_checkpoint
from pipeline.published import converted
from pipeline.saved_folders import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass
class Published:
    """A case, the format of its state, and the KEY=VALUE that its weights do not tell."""

    case: str
    format: str
    options: list[str] = field(default_factory=list)
    image_size: int = 16

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return Case(GOLDEN / self.case).state


CASES = [
    Published("robustok_grid", "robustok", ["heads=3", "decoder_heads=3"]),
    Published("robustok_row", "robustok", ["heads=4", "decoder_heads=3"], image_size=20),
    Published("rae_autoencoder", "rae", ["heads=4", "encoder_heads=3"], image_size=20),
]


@torch.no_grad()
@pytest.mark.parametrize("published", CASES, ids=lambda published: published.case)
def test_the_command_writes_a_folder_that_loads(published, tmp_path):
    save_file(published.state, tmp_path / "file.safetensors")
    import_checkpoint([published.format, str(tmp_path / "file.safetensors"), str(tmp_path / "out"), *published.options])
    tokenizer = converted(published.format, published.state, published.options)["tokenizer"]
    loaded = load_tokenizer(str(tmp_path / "out"), "tokenizer.start").eval()
    images = torch.rand(2, 3, published.image_size, published.image_size) * 2 - 1
    assert torch.equal(loaded(images).images, tokenizer(images).images)


@pytest.mark.parametrize("published", CASES, ids=lambda published: published.case)
def test_every_key_is_read_or_known_to_be_left_out(published):
    state = published.state
    with pytest.raises(ValueError, match="1 unexpected keys in the checkpoint: encoder.extra"):
        converted(published.format, state | {"encoder.extra": torch.zeros(1)}, published.options)
    key = next(key for key in state if "blocks.1" in key or "layer.1" in key)
    with pytest.raises(ValueError, match="missing from the checkpoint"):
        converted(published.format, {k: v for k, v in state.items() if k != key}, published.options)
    with pytest.raises(ValueError, match="not a .* checkpoint"):
        converted(published.format, {"other": torch.zeros(1)}, published.options)
