"""OmniTokenizer: what its windows and its time let a token see, images as clips of one frame, and what is refused."""

import pytest
import torch
from support.tiny_pipeline import randomised
from torch import Tensor

from pipeline.draws import StepDraws
from pipeline.nn.clip_patches import put_patches, take_patches
from pipeline.nn.spacetime import WindowAttention, alternating_rotary_tables, window_offsets
from pipeline.tokenizers.omni_tokenizer import OmniTokenizer

SIZES = {"width": 24, "heads": 3, "patch_size": 4, "window": 2, "temporal_depth": 1}
REACHES = {"reach": ["frame", "window"], "decoder_reach": ["frame"]}
CODES = {"kind": "identity", "dim": 4}


def omni(**changes) -> OmniTokenizer:
    node = {"image_size": 16, "bottleneck": CODES} | SIZES | REACHES | changes
    return randomised(OmniTokenizer(**node), 0).eval()


def frames(count: int, size: int = 16) -> Tensor:
    return torch.rand(2, 3, count, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def without_mixing(tokenizer: OmniTokenizer) -> OmniTokenizer:
    """Without the convolutions along time, which mix the places of a clip, as released."""
    for module in (tokenizer.time_encoder, tokenizer.time_decoder):
        torch.nn.init.zeros_(module.blocks[0].positions.kernel)
    return tokenizer


@torch.no_grad()
def test_an_image_is_the_first_frame_of_any_clip():
    tokenizer, clip = without_mixing(omni(clip_patch=2)), frames(5)
    code, image = tokenizer.encode_clip(clip), tokenizer.encode(clip[:, :, 0])
    assert code.z.shape == (2, 3 * 16, 4)
    torch.testing.assert_close(code.z[:, :16], image.z)
    whole = tokenizer.decode_clip(code)
    torch.testing.assert_close(whole[:, :, 0], tokenizer.decode(image))
    torch.testing.assert_close(tokenizer.decode_clip(image)[:, :, 0], tokenizer.decode(image))
    assert whole.shape == clip.shape


def test_no_code_depends_on_a_later_frame():
    tokenizer, clip = without_mixing(omni(clip_patch=2)), frames(5)[:1].requires_grad_()
    for last, seen in ((1, 1), (2, 3)):  # frames of the code, and of the clip
        (slope,) = torch.autograd.grad(tokenizer.encode_clip(clip).z[:, : 16 * last].sum(), clip)
        by_frame = slope.abs().sum(dim=(0, 1, 3, 4))
        assert by_frame[:seen].min() > 0 and by_frame[seen:].max() == 0


@torch.no_grad()
def test_a_window_sees_itself_alone():
    layer = randomised(WindowAttention(24, 3, 2), 0)
    x = torch.randn(1, 4, 6, 24)
    changed = x.clone()
    changed[:, 2, 3] += torch.randn(24)
    moved = (layer(changed) - layer(x)).abs().sum(dim=-1)[0] > 1e-6
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[2:4, 2:4] = True
    assert torch.equal(moved, expected)


def test_offsets_number_pairs_by_how_far_apart_they_are():
    offsets = window_offsets(3)
    assert offsets[4, 4] == 12 and offsets[0, 8] == 0 and offsets[8, 0] == 24  # of 5x5 offsets, 12 is none
    assert len(offsets.unique()) == 25


def test_pairs_of_channels_alternate_between_column_and_row():
    cosines, sines = alternating_rotary_tables((3, 5), 8)
    angle = torch.atan2(sines, cosines)[7]  # row 1, column 2
    torch.testing.assert_close(angle, torch.tensor([2, 2, 1, 1, 0.02, 0.02, 0.01, 0.01]))


def test_patches_come_back():
    clip = frames(4)
    assert torch.equal(put_patches(take_patches(clip, 4, 2), 4, 2), clip)
    first = take_patches(clip, 4, 2)[0, 0, 1, 2].unflatten(0, (3, 2, 4, 4))  # channel, frame, row, column
    assert torch.equal(first, clip[0, :, :2, 4:8, 8:12])


def test_codes_have_length_one_before_they_are_compared():
    neck = {"kind": "vector_quantize", "dim": 4, "vocab": 8, "unit_norm": False, "learn": "ema"}
    tokenizer = omni(bottleneck=neck, unit_latents=True)
    h = tokenizer.features(frames(1)[:, :, 0])
    torch.testing.assert_close(h.norm(dim=-1), torch.ones(2, 16))


@pytest.mark.parametrize("position", ["convolution", "rotary"])
def test_all_parameters_of_a_tokenizer_of_images_are_trained(position):
    """But for what scales the only key along time, whose gradient is zero."""
    tokenizer = omni(position=position).train()
    rebuilt = tokenizer(frames(1)[:, :, 0], draws=StepDraws(0, 0, slice(0, 2), 2))
    rebuilt.images.square().mean().backward()
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"window": 3}, "windows of 3x3 positions do not fill a map of 4x4"),
        ({"image_size": 18}, "patch_size 4"),
        ({"heads": 5}, "a width of 24 is not divisible by 5 heads"),
        ({"position": "rotary", "heads": 4}, "heads of 4, 8, ... channels, not 6"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        omni(**changes)


def test_clips_that_it_has_no_layers_for_are_refused():
    with pytest.raises(ValueError, match="built with clip_patch"):
        omni().encode_clip(frames(5))
    with pytest.raises(ValueError, match="1 \\+ k 2 frames, not 4"):
        omni(clip_patch=2).encode_clip(frames(4))
    with pytest.raises(ValueError, match="windows of 2x2 positions do not fill a map of 3x4"):
        omni().encode(torch.zeros(1, 3, 12, 16))
    with pytest.raises(ValueError, match="fill no maps of 4x4"):
        omni().decode_clip(omni(image_size=8).encode(frames(1, 8)[:, :, 0]))
