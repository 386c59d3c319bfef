"""Pipelines of rectangles, of grey, RGB and RGBA, and of 16 bits: what they give as pictures, and take."""

import numpy as np
import pytest
import torch
from support.tiny_pipeline import MODEL, NETWORK, generators, make_pipeline, randomised

from pipeline import LatentPipeline
from pipeline.images.stored_pixels import as_saved
from pipeline.networks.diffusion_transformer import DiffusionTransformer
from pipeline.tokenizers.conv_autoencoder import ConvAutoencoder


def pipeline_of(channels: int, depth: int = 8) -> LatentPipeline:
    """16x24 pixels, 4x6 tokens."""
    sizes, shape = ({n: v for n, v in node.items() if n != "kind"} for node in (MODEL, NETWORK))
    tokenizer = randomised(ConvAutoencoder([16, 24], image_channels=channels, **sizes), 1)
    return make_pipeline(
        tokenizer=tokenizer, network=randomised(DiffusionTransformer([4, 6], 3, 4, **shape), 2), depth=depth
    )


@pytest.mark.parametrize("channels, depth, mode", [(1, 8, "L"), (1, 16, "I;16"), (3, 8, "RGB"), (4, 8, "RGBA")])
def test_pictures_have_the_channels_the_sides_and_the_depth_of_the_images(channels, depth, mode, tmp_path):
    pipe = pipeline_of(channels, depth)
    pipe.save_pretrained(tmp_path)
    loaded = LatentPipeline.from_pretrained(tmp_path)
    assert LatentPipeline.from_pipe(loaded).config.depth == loaded.config.depth == depth
    loaded.set_progress_bar_config(disable=True)
    values = pipe([0, 3], generator=generators(1, 2), output_type="pt").images
    array = pipe([0, 3], generator=generators(1, 2), output_type="np").images
    assert values.shape == (2, channels, 16, 24) and array.shape == (2, 16, 24, channels)
    pictures = loaded([0, 3], generator=generators(1, 2)).images
    assert {(picture.mode, picture.size) for picture in pictures} == {(mode, (24, 16))}
    levels = np.stack([np.asarray(picture).reshape(16, 24, channels) for picture in pictures]).astype(int)
    expected = (as_saved(values * 2 - 1, depth) + 1) / 2 * (2**depth - 1)
    assert np.abs(levels - expected.permute(0, 2, 3, 1).numpy()).max() < 1
    pictures[0].save(tmp_path / "picture.png")
    again = pipe.encode(pictures[0])
    whole = torch.from_numpy(levels[:1] / (2**depth - 1) * 2 - 1).permute(0, 3, 1, 2).float()
    if channels < 4:  # what is wholly transparent becomes white where pictures are read
        torch.testing.assert_close(again.z, pipe.encode(whole).z, atol=1e-4, rtol=1e-4)


def test_a_depth_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="depth: 12 is not one of 8, 16"):
        pipeline_of(1, 12)
