"""The import of tokenizers whose golden cases lie in this tree: whole files alone, and folders that load."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from golden_kinds import Case
from safetensors.torch import save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

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
    encoder_width: int | None = None  # of a frozen encoder that the state does not hold

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return Case(GOLDEN / self.case).state


CASES = [
    Published("robustok_grid", "robustok", ["heads=3", "decoder_heads=3"]),
    Published("robustok_row", "robustok", ["heads=4", "decoder_heads=3"], image_size=20),
    Published("rae_autoencoder", "rae", ["heads=4", "encoder_heads=3"], image_size=20),
    Published("vitok2_autoencoder", "vitok2"),
    Published("rectok", "rectok", ["heads=2", "decoder_heads=4"]),
    Published("svg_autoencoder", "svg", ["heads=2"], image_size=48, encoder_width=12),
]


@pytest.fixture
def options(published, tmp_path) -> list[str]:
    """Those of the case, and where its frozen encoder is."""
    if published.encoder_width is None:
        return published.options
    width = published.encoder_width
    config = DINOv3ViTConfig(hidden_size=width, num_hidden_layers=1, num_attention_heads=1, intermediate_size=width)
    DINOv3ViTModel(config).save_pretrained(tmp_path / "encoder")
    return [*published.options, f"start={tmp_path / 'encoder'}"]


@torch.no_grad()
@pytest.mark.parametrize("published", CASES, ids=lambda published: published.case)
def test_the_command_writes_a_folder_that_loads(published, options, tmp_path):
    save_file(published.state, tmp_path / "file.safetensors")
    import_checkpoint([published.format, str(tmp_path / "file.safetensors"), str(tmp_path / "out"), *options])
    tokenizer = converted(published.format, published.state, options)["tokenizer"]
    loaded = load_tokenizer(str(tmp_path / "out"), "tokenizer.start").eval()
    images = torch.rand(2, 3, published.image_size, published.image_size) * 2 - 1
    torch.testing.assert_close(loaded.state_dict(), tokenizer.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded(images).images, tokenizer(images).images)  # a file's weights lie unaligned


@pytest.mark.parametrize("published", CASES, ids=lambda published: published.case)
def test_every_key_is_read_or_known_to_be_left_out(published, options):
    state = published.state
    with pytest.raises(ValueError, match="1 unexpected keys in the checkpoint: other"):
        converted(published.format, state | {"other": torch.zeros(1)}, options)
    key = next(key for key in state if any(name in key for name in ("blocks.1", "layer.1", "layer_1", "transformer.1")))
    with pytest.raises(ValueError, match="missing from the checkpoint"):
        converted(published.format, {k: v for k, v in state.items() if k != key}, options)
    with pytest.raises(ValueError, match="not a .* checkpoint"):
        converted(published.format, {"other": torch.zeros(1)}, options)
