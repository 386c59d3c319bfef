"""Images other than RGB squares: grey of 8 and of 16 bits, RGBA, and rectangles, from files to files."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.images.ahead import narrowed, read_all, widened
from pipeline.images.grids import grid, reconstructions
from pipeline.images.preparing import convert, fit, pixels_of
from pipeline.images.reading import Images
from pipeline.images.stored_pixels import as_picture, as_saved, from_pixels, read_picture, to_pixels
from pipeline.nn.image_channels import as_rgb
from pipeline.recipes.data import Data
from pipeline.validation import SettingError

LEVELS = np.arange(2**16, dtype=np.uint16).reshape(256, 256)


def folder(tmp_path, *pictures: Image.Image, ending: str = "png") -> dict[str, object]:
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.{ending}")
    return {"kind": "image_folder", "path": str(tmp_path), "held_out": 0.0}


def read(source: dict[str, object], size: int | tuple[int, int], **settings: object) -> Tensor:
    images = Images(Data(source, size, **settings), "train")
    return images.plain(torch.arange(len(images))).images


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_65536_levels_are_read_as_so_many_numbers_and_written_as_they_were(tmp_path, ending):
    images = read(folder(tmp_path, Image.fromarray(LEVELS), ending=ending), 256, channels="grey", depth=16)
    assert images.shape == (1, 1, 256, 256) and images.unique().numel() == 2**16
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(as_saved(images, 16), images) and torch.equal(
        widened(narrowed({"images": images}))["images"], images
    )
    as_picture(to_pixels(images, 16)[0]).save(tmp_path / "written.png")
    assert np.array_equal(read_picture(tmp_path / "written.png")[..., 0], LEVELS)
    assert torch.equal(from_pixels(read_picture(tmp_path / "written.png")[None]), images)


def test_depth_8_rounds_levels_and_depth_16_spreads_those_of_8_bits(tmp_path):
    wide = folder(tmp_path, Image.fromarray(LEVELS))
    assert np.array_equal(to_pixels(read(wide, 256, channels="grey"))[0, ..., 0], np.rint(LEVELS / 257))
    small = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert np.array_equal(pixels_of(convert(small, "grey", 16))[..., 0], np.asarray(small).astype(np.uint16) * 257)
    shares = Image.fromarray(np.float32([[0, 0.25, 1]]))
    assert pixels_of(convert(shares, "grey", 16)).ravel().tolist() == [0, 16384, 65535]


def test_resizing_16_bits_stays_between_levels_of_8_and_inside_of_16(tmp_path):
    edges = np.repeat(np.uint16([[0, 65535, 130, 131]]), 4, axis=0).repeat(8, axis=1).repeat(8, axis=0)
    fitted = pixels_of(fit(convert(Image.fromarray(edges), "grey", 16), (24, 24), "lanczos"))
    assert fitted.dtype == np.uint16 and fitted.min() == 0 and fitted.max() == 65535, "what overshoots is clipped"
    assert (fitted % 257).any()


def test_grey_is_one_channel_of_what_is_read_as_rgb(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    source = folder(tmp_path, Image.fromarray(noise))
    grey = read(source, 16, channels="grey")
    assert grey.shape == (1, 1, 16, 16) and torch.equal(as_rgb(grey), read(source, 16))


def test_alpha_is_kept_and_what_is_transparent_lends_no_colour(tmp_path):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, :8] = (0, 255, 0, 0)  # green that nobody sees, beside opaque red
    pixels[:, 8:] = (255, 0, 0, 255)
    source = folder(tmp_path, Image.fromarray(pixels))
    images = read(source, (12, 12), channels="rgba")
    red, green, blue, alpha = to_pixels(images)[0].astype(int).transpose(2, 0, 1)
    assert alpha.min() == 0 and alpha.max() == 255 and ((alpha > 0) & (alpha < 255)).any()
    assert (red[alpha > 0] > 250).all() and (green[alpha > 20] < 5).all()
    assert (green[alpha == 0] == 255).all() and (blue[alpha == 0] == 255).all(), "white where nothing is"
    over_white = to_pixels(as_rgb(read(source, 16, channels="rgba")))
    assert np.array_equal(over_white, to_pixels(read(source, 16))), "as images without alpha are read"


def test_opaque_pictures_and_transparent_levels_have_their_alpha():
    assert np.asarray(convert(Image.new("RGB", (1, 1), (1, 2, 3)), "rgba")).tolist() == [[[1, 2, 3, 255]]]
    for levels in (np.uint16([[0, 257 * 9]]), np.uint8([[0, 9]])):
        keyed = Image.fromarray(levels)
        keyed.info["transparency"] = int(levels[0, 1])
        assert np.asarray(convert(keyed, "rgba"))[0, :, 3].tolist() == [255, 0]


def ramp(height: int, width: int) -> Image.Image:
    """Red is the row, green the column."""
    down, across = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([down, across, 0 * down], axis=-1))


def test_rectangles_are_cut_at_the_centre_after_resizing(tmp_path):
    source = folder(tmp_path, ramp(24, 40))
    tall, wide = (to_pixels(read(source, size, resize="nearest"))[0] for size in ((24, 16), (6, 20)))
    assert tall.shape == (24, 16, 3) and np.array_equal(tall[0, :, 1], np.arange(12, 28))
    assert wide.shape == (6, 20, 3), "20 of 40 columns, and 6 of 12 rows that were 24"
    assert wide[:, 0, 0].tolist() == [7, 9, 11, 13, 15, 17] and np.ptp(wide[0, :, 1]) >= 38


def test_random_crops_and_parts_of_rectangles_have_their_shape_and_stay_inside(tmp_path):
    source, rows, seeds = folder(tmp_path, ramp(24, 40)), torch.zeros(200, dtype=torch.int64), torch.arange(200)
    cut = Images(Data(source, (8, 16), crop="random", shorter_side=12, resize="nearest", flip=True), "train")
    shown = to_pixels(cut.batch(rows, seeds).images)
    assert shown.shape == (200, 8, 16, 3)
    steps = np.diff(shown[:, 0, :, 1].astype(int), axis=1)
    assert (np.abs(steps) <= 3).all() and (steps.sum(1) < 0).any() and (steps.sum(1) > 0).any(), "some are mirrored"
    corners = {tuple(one) for one in shown[:, 0, 0, :2].tolist()}
    assert len(corners) > 20
    parts = Images(Data(source, (8, 16), crop="part", part=(0.5, 1.0), resize="nearest"), "train")
    seen = to_pixels(parts.batch(rows, seeds).images).astype(int)
    tall, wide = np.ptp(seen[:, :, 0, 0], axis=1) + 1, np.ptp(seen[:, 0, :, 1], axis=1) + 1
    assert wide.max() <= 40 and tall.max() <= 20 and wide.min() >= 17, "parts are 20 to 40 wide, and half as tall"
    assert np.abs(tall - wide / 2).max() <= 3, "whatever their size"


def test_crops_of_rectangles_are_five_a_factor(tmp_path):
    images = Images(Data(folder(tmp_path, ramp(24, 40)), (8, 16), resize="nearest"), "train")
    views = [view.images for view in images.views(torch.zeros(1, dtype=torch.int64), [1.5], flip=True)]
    assert len(views) == 10 and all(view.shape == (1, 3, 8, 16) for view in views)
    first = [to_pixels(view)[0, 0, 0, :2].tolist() for view in views[2::2]]
    assert len({tuple(one) for one in first}) == 4, "the corners differ"
    assert torch.equal(views[1], views[0].flip(-1))


def test_rectangles_are_kept_in_memory_and_told_apart(tmp_path):
    source = folder(tmp_path, ramp(24, 40))
    one, same, other = (Images(Data(source, size), "train") for size in (16, [16, 16], (16, 24)))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint() and same.data.size == 16
    assert one.fingerprint() != Images(Data(source, 16, channels="grey"), "train").fingerprint()
    first = other.plain(torch.arange(1)).images
    assert other.in_memory and torch.equal(other.plain(torch.arange(1)).images, first)
    assert read_all(other, torch.arange(1)).images.shape == (1, 3, 16, 24)


def test_settings_that_do_not_fit_are_refused():
    data = {"source": {"kind": "digits"}}
    with pytest.raises(SettingError, match="depth is 16, and the channels are rgb; set data.channels=grey"):
        Data(**data, size=16, depth=16)
    with pytest.raises(SettingError, match="shorter_side is 12; give one number or two in order, 16"):
        Data(**data, size=(24, 16), shorter_side=12)
    with pytest.raises(SettingError, match="size"):
        Data(**data, size=(24, 0))
    assert Data(**data, size=(24, 16), shorter_side=20).box(20) == (30, 20)


def test_pictures_of_all_kinds_are_shown_as_rgb_over_white():
    grey, clear = np.full((1, 64, 80, 1), 257 * 7, np.uint16), np.zeros((1, 64, 80, 4), np.uint8)
    sheet = grid([grey], [])
    assert sheet.mode == "RGB" and sheet.size == (80, 64) and sheet.getpixel((3, 3)) == (7, 7, 7)
    assert grid([clear], []).getpixel((3, 3)) == (255, 255, 255)
    for channels in (1, 4):
        images = torch.zeros(2, channels, 64, 80)
        assert reconstructions(images, images).size[1] == 3 * 64 + 4
