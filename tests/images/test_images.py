"""Pictures of every mode come out as upright RGB, and what is random about a row is a function of its seed."""

import io
import pickle
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.images.preparing import crop, fit, to_rgb
from pipeline.images.reading import Images
from pipeline.recipes.data import Data

LEFT_TO_RIGHT = np.array([[0, 50, 100, 255]], np.uint8)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as again:
        again.load()
        return again


def pixels(image):
    return np.asarray(to_rgb(image))


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, -1)


def test_grey_and_one_bit(tmp_path):
    assert np.array_equal(pixels(saved(tmp_path, Image.fromarray(LEFT_TO_RIGHT), "l.png")), grey(LEFT_TO_RIGHT))
    bits = Image.fromarray(np.array([[True, False]])).convert("1")
    assert np.array_equal(pixels(saved(tmp_path, bits, "1.png")), grey([[255, 0]]))


def test_palettes_with_and_without_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 0, 90, 0])
    image.putpixel((1, 0), 1)
    colours = [[[200, 10, 20], [0, 90, 0]]]
    assert np.array_equal(pixels(saved(tmp_path, image, "p.png")), colours)
    clear = saved(tmp_path, image, "clear.png", transparency=1)
    assert clear.mode == "P" and np.array_equal(pixels(clear), [[[200, 10, 20], [255, 255, 255]]])


def test_what_is_transparent_lies_over_white(tmp_path):
    rgba = Image.new("RGBA", (1, 1), (100, 0, 200, 51))  # a fifth of it
    assert np.abs(pixels(saved(tmp_path, rgba, "rgba.png")).astype(int) - [[[224, 204, 244]]]).max() <= 1
    la = Image.new("LA", (1, 1), (0, 0))
    assert np.array_equal(pixels(saved(tmp_path, la, "la.png")), [[[255, 255, 255]]])
    keyed = saved(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3)), "key.png", transparency=(1, 2, 3))
    assert np.array_equal(pixels(keyed), [[[255, 255, 255]]])


def test_cmyk(tmp_path):
    for name in ("cmyk.tif", "cmyk.jpg"):
        image = saved(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), name)
        assert image.mode == "CMYK"
        assert np.abs(pixels(image).astype(int) - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("name", ["16.png", "16.tif", "16.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    image = saved(tmp_path, Image.fromarray(LEFT_TO_RIGHT.astype(np.uint16) * 257), name)
    assert image.mode.startswith("I") and np.array_equal(pixels(image), grey(LEFT_TO_RIGHT))


def test_wide_and_floating_modes(tmp_path):
    big_endian = Image.frombytes("I;16B", (4, 1), (LEFT_TO_RIGHT.astype(">u2") * 257).tobytes())
    assert np.array_equal(pixels(big_endian), grey(LEFT_TO_RIGHT))
    assert np.array_equal(pixels(Image.fromarray(LEFT_TO_RIGHT.astype(np.int32) * 257)), grey(LEFT_TO_RIGHT))
    share = saved(tmp_path, Image.fromarray((LEFT_TO_RIGHT / 255).astype(np.float32)), "f.tif")
    assert share.mode == "F" and np.array_equal(pixels(share), grey(LEFT_TO_RIGHT))
    assert np.array_equal(pixels(Image.fromarray(LEFT_TO_RIGHT.astype(np.float32))), grey(LEFT_TO_RIGHT))
    with pytest.raises(ValueError, match="outside"):
        to_rgb(Image.fromarray(np.array([[-1, 2**20]], np.int32)))


@pytest.mark.parametrize("orientation, turned", [(3, 2), (6, 3), (8, 1)])
def test_exif_rotated_photographs_stand_upright(tmp_path, orientation, turned):
    array = np.zeros((2, 4, 3), np.uint8)
    array[0, 0] = [255, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(saved(tmp_path, Image.fromarray(array), "x.png", exif=exif)), np.rot90(array, turned))


def test_the_shorter_side_is_fitted_and_the_centre_kept():
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 200
    image = fit(Image.fromarray(wide), (16, 16), "bicubic")
    assert image.size == (48, 16)
    assert (crop(np.asarray(image), (16, 16))[:, 3:13] == 200).all()
    assert (crop(np.asarray(image), (16, 16), (0.0, 0.0))[:, :10] == 0).all()
    assert crop(np.asarray(image), (16, 16), (0.9999, 0.9999)).shape == (16, 16, 3)


def test_small_images_are_enlarged_and_thin_ones_refused():
    array = np.arange(64, dtype=np.uint8).reshape(8, 8)
    twice = np.asarray(fit(Image.fromarray(array), (16, 16), "nearest"))
    assert np.array_equal(twice, array.repeat(2, 0).repeat(2, 1))
    assert fit(Image.fromarray(array), (16, 16), "bicubic").size == (16, 16)
    with pytest.raises(ValueError, match="cannot be made"):
        fit(Image.new("L", (1, 30000)), (256, 256), "bicubic")


def test_halving_keeps_the_mean():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    assert abs(np.asarray(fit(Image.fromarray(noise), (8, 8), "bicubic")).mean() - noise.mean()) < 2


def digits(split="train", **changes):
    return Images(Data(**{"source": {"kind": "digits"}, "size": 16} | changes), split)


ROWS, SEEDS = torch.tensor([0, 5, 9, 700] * 8), torch.arange(32) + 2**40


def test_pixels_labels_and_names():
    images = digits(size=8)
    batch = images.plain(ROWS)
    assert batch.images.shape == (32, 3, 8, 8) and batch.images.dtype == torch.float32
    record = images.source.read(5)
    assert torch.equal(batch.images[1, 2], torch.from_numpy(np.asarray(record.image).astype(np.float32)) / 127.5 - 1)
    assert batch.condition.labels.tolist()[:4] == [images.source.read(i).label for i in (0, 5, 9, 700)]
    assert images.num_classes == 10 and images.class_names[7] == "7"


def test_seeds_decide_the_flips_and_nothing_else_does():
    images = digits(flip=True)
    batch, plain, mirror = images.batch(ROWS, SEEDS), images.plain(ROWS), images.plain(ROWS, flip=True)
    flipped = (batch.images == mirror.images).flatten(1).all(1)
    assert ((batch.images == plain.images).flatten(1).all(1) ^ flipped).all()
    assert 8 <= flipped.sum() <= 24
    turned = images.batch(ROWS.flip(0)[:5], SEEDS.flip(0)[:5])  # another order, another batch
    assert torch.equal(turned.images, batch.images.flip(0)[:5])
    assert not torch.equal(images.batch(ROWS, SEEDS + 1).images, batch.images)
    assert torch.equal(images.batch(ROWS, SEEDS).images, batch.images)  # the kept pixels are left as they are


def test_held_out_images_and_unflipped_ones_are_never_augmented():
    held_out = digits("held_out", flip=True, crop="random")
    assert torch.equal(held_out.batch(ROWS[:3], SEEDS[:3]).images, held_out.plain(ROWS[:3]).images)
    images = digits()
    assert torch.equal(images.batch(ROWS, SEEDS).images, images.plain(ROWS).images)


def test_views_are_the_image_or_five_crops_a_factor_each_with_its_mirror(tmp_path):
    ramp_folder(tmp_path)
    across, down = np.meshgrid(np.arange(24), np.arange(40))
    Image.fromarray(np.stack([across, down, across * 0], -1).astype(np.uint8)).save(tmp_path / "tall.png")
    images = Images(Data({"kind": "image_folder", "path": str(tmp_path), "held_out": 0.0}, size=16), "train")
    rows = torch.tensor([6, 0])
    plain = images.plain(rows).images
    whole = [batch.images for batch in images.views(rows, flip=True)]
    assert len(whole) == 2 and torch.equal(whole[0], plain) and torch.equal(whole[1], plain.flip(-1))

    views = [batch.images for batch in images.views(rows, crops=(1.5, 1.0), flip=True)]
    assert len(views) == 20 and all(view.shape == (2, 3, 16, 16) for view in views)
    corner = lambda view: ((view[0, :2, 0, 0] + 1) * 127.5).round().int().tolist()  # noqa: E731
    # at 1.5 times 16 pixels the file is as large as it is: the square begins in row 8
    assert [corner(view) for view in views[:10:2]] == [[4, 12], [0, 8], [8, 8], [0, 16], [8, 16]]
    assert all(torch.equal(mirror, view.flip(-1)) for view, mirror in zip(views[::2], views[1::2]))
    assert all(torch.equal(view, plain) for view in views[10::2])  # nothing is left of a square of its own size
    assert torch.equal(images.plain(rows).images, plain)


def test_the_side_that_crops_are_taken_of_is_rounded_down_as_in_the_released_scripts(tmp_path):
    across, down = np.meshgrid(np.arange(17), np.arange(17))
    Image.fromarray(np.stack([across, down, across * 0], -1).astype(np.uint8)).save(tmp_path / "square.png")
    images = Images(Data({"kind": "image_folder", "path": str(tmp_path), "held_out": 0.0}, size=16), "train")
    first = [((view.images[0, :2, 0, 0] + 1) * 127.5).round().int().tolist() for view in images.views(ROWS[:1], (1.1,))]
    assert first == [[0, 0], [0, 0], [1, 0], [0, 1], [1, 1]]  # of 17 pixels, which is 1.1 times 16 without its fraction


def test_crops_are_of_the_next_readable_image_and_no_random_crop_reaches_them(tmp_path):
    images = Images(Data(ramp_folder(tmp_path, broken=[3]), size=8, crop="random", tolerate=1), "train")
    found, expected = (list(images.views(torch.tensor([row]), (1.25,))) for row in (3, 4))
    assert len(found) == 5 and all(torch.equal(a.images, b.images) for a, b in zip(found, expected))
    centred = Images(Data(ramp_folder(tmp_path), size=8), "train")
    again = centred.views(torch.tensor([4]), (1.25,))
    assert all(torch.equal(a.images, b.images) for a, b in zip(again, expected))


def test_a_pickled_copy_reads_the_same():
    images = digits(flip=True)
    batch = images.batch(ROWS, SEEDS)
    assert torch.equal(pickle.loads(pickle.dumps(images)).batch(ROWS, SEEDS).images, batch.images)


def ramp_folder(tmp_path, count=6, broken=()):
    for number in range(count):
        ramp = np.tile(np.arange(24, dtype=np.uint8) * 10, (8, 1))
        Image.fromarray(ramp).save(tmp_path / f"{number}.png")
    for number in broken:
        content = (tmp_path / f"{number}.png").read_bytes()
        (tmp_path / f"{number}.png").write_bytes(content[: len(content) // 2])
    return {"kind": "image_folder", "path": str(tmp_path), "held_out": 0.0}


@pytest.mark.parametrize("in_memory", [True, False])
def test_seeds_decide_where_a_random_crop_lies(tmp_path, in_memory):
    images = Images(Data(ramp_folder(tmp_path), size=8, crop="random"), "train")
    images.in_memory = in_memory
    rows, seeds = torch.zeros(200, dtype=torch.int64), torch.arange(200)
    batch = images.batch(rows, seeds)
    left = ((batch.images[:, 0, 0, 0] + 1) * 12.75).round().long()
    assert set(left.tolist()) == set(range(17))  # 24 - 8 + 1 places
    assert torch.equal(images.batch(rows, seeds).images, batch.images)
    assert batch.condition is None and images.num_classes == 0
    assert ((images.plain(rows[:1]).images[0, 0, 0, 0] + 1) * 12.75).round() == 8


@pytest.mark.parametrize("in_memory", [True, False])
def test_training_images_are_cropped_from_a_larger_one(tmp_path, in_memory):
    """Twice as large, 24 x 8 pixels are 48 x 16: a crop of 8 lies in one of 41 x 9 places and shows half the ramp."""
    images = Images(Data(ramp_folder(tmp_path), size=8, crop="random", shorter_side=16, resize="nearest"), "train")
    images.in_memory = in_memory
    rows, seeds = torch.zeros(400, dtype=torch.int64), torch.arange(400)
    for _ in range(2):
        batch = images.batch(rows, seeds)
        levels = ((batch.images[:, 0, 0] + 1) * 12.75).round()
        assert (levels[:, -1] - levels[:, 0] <= 4).all() and set(levels[:, 0].tolist()) == set(range(21))
    plain = Images(Data(ramp_folder(tmp_path), size=8), "train").plain(rows[:1]).images
    assert torch.equal(images.plain(rows[:1]).images, plain)  # of what is encoded and measured nothing changes
    assert images.fingerprint() == Images(Data(ramp_folder(tmp_path), size=8, resize="nearest"), "train").fingerprint()
    centred = Images(Data(ramp_folder(tmp_path), size=8, shorter_side=16, resize="nearest"), "train")
    torch.testing.assert_close(
        (centred.batch(rows[:1], seeds[:1]).images[0, 0, 0, [0, -1]] + 1) * 12.75, torch.tensor([10.0, 13])
    )


def test_a_drawn_shorter_side_is_of_every_size_of_its_range_and_a_function_of_the_seed(tmp_path):
    images = Images(Data(ramp_folder(tmp_path), size=8, shorter_side=(8, 10), resize="nearest"), "train")
    rows, seeds = torch.zeros(300, dtype=torch.int64), torch.arange(300)
    shown = images.batch(rows, seeds).images
    sizes = [
        Images(Data(ramp_folder(tmp_path), size=8, shorter_side=side, resize="nearest"), "train").batch(
            rows[:1], seeds[:1]
        )
        for side in (8, 9, 10)
    ]
    which = torch.stack([(shown == one.images).flatten(1).all(1) for one in sizes])
    assert (which.sum(0) == 1).all() and (which.sum(1) > 70).all()
    assert torch.equal(images.batch(rows[7:9], seeds[7:9]).images, shown[7:9])
    assert not any(box != (8, 8) for _, box in images._kept)


def test_a_part_is_a_square_of_a_drawn_size_at_a_drawn_place_brought_to_size(tmp_path):
    """24 x 8 pixels: squares of 4 to 8 pixels, each at 8 x 8, so that of the ramp 3 to 7 steps are seen."""
    images = Images(Data(ramp_folder(tmp_path), size=8, crop="part", resize="nearest"), "train")
    rows, seeds = torch.zeros(400, dtype=torch.int64), torch.arange(400)
    shown = images.batch(rows, seeds).images
    assert shown.shape == (400, 3, 8, 8)
    levels = ((shown[:, 0, 0] + 1) * 12.75).round()
    assert set((levels[:, -1] - levels[:, 0]).tolist()) == {3, 4, 5, 6, 7}
    assert levels[:, 0].min() == 0 and levels[:, -1].max() == 23
    assert torch.equal(images.batch(rows[7:9], seeds[7:9]).images, shown[7:9])
    whole = Images(Data(ramp_folder(tmp_path), size=8, crop="part", part=(1.0, 1.0), resize="nearest"), "train")
    levels = ((whole.batch(rows, seeds).images[:, 0, 0] + 1) * 12.75).round()
    assert ((levels[:, -1] - levels[:, 0]) == 7).all() and set(levels[:, 0].tolist()) == set(range(17))
    plain = Images(Data(ramp_folder(tmp_path), size=8), "train").plain(rows[:1]).images
    assert torch.equal(images.plain(rows[:1]).images, plain)
    with pytest.raises(ValueError, match="shorter_side is of crops of one size"):
        Data({"kind": "digits"}, size=8, crop="part", shorter_side=16)


@pytest.mark.parametrize("crop", ["part", "random", "center"])
def test_training_passes_over_small_images_and_encoding_does_not(tmp_path, crop):
    for number, side in enumerate((8, 16, 4, 32)):
        Image.new("RGB", (side, side + 4), (10 * number,) * 3).save(tmp_path / f"{number}.png")
    data = Data({"kind": "image_folder", "path": str(tmp_path), "held_out": 0.0}, size=8, crop=crop, smallest=16)
    images = Images(data, "train")
    rows = torch.arange(4)
    for _ in range(2):
        level = ((images.batch(rows, rows).images[:, 0, 0, 0] + 1) * 12.75).round().tolist()
        assert level == [1, 1, 3, 3] and not images.broken
        assert ((images.plain(rows).images[:, 0, 0, 0] + 1) * 12.75).round().tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"not one image has 64 pixels per side \(data.smallest\)"):
        Images(replace(data, smallest=64), "train").batch(rows, rows)


@pytest.mark.parametrize("side", [7, (8, 7), (7, 9)])
def test_a_shorter_side_below_the_crop_or_out_of_order_is_refused(side):
    with pytest.raises(ValueError, match="shorter_side is .*; give one number or two in order, 8"):
        Data({"kind": "digits"}, size=8, shorter_side=side)


def test_a_broken_file_stops_the_run_by_name(tmp_path):
    images = Images(Data(ramp_folder(tmp_path, broken=[3]), size=8), "train")
    images.plain(torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"1 broken, data.tolerate is 0: .*3\.png") as caught:
        images.plain(torch.tensor([3]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("in_memory", [True, False])
def test_tolerated_files_are_counted_and_give_way_to_the_next(tmp_path, in_memory, caplog):
    source = ramp_folder(tmp_path, broken=[3, 4])
    Image.new("L", (8, 8), 77).save(tmp_path / "5.png")
    images = Images(Data(source, size=8, tolerate=2), "train")
    images.in_memory = in_memory
    for _ in range(2):
        found = images.plain(torch.tensor([3, 4, 5])).images
        torch.testing.assert_close(found, torch.full_like(found, 77 / 127.5 - 1))
    assert len(images.broken) == 2 and "3.png" in images.broken[0]
    assert [r.message for r in caplog.records].count(f"left out {images.broken[0]}") == 1
    with pytest.raises(ValueError, match="2 broken, data.tolerate is 1"):
        Images(Data(source, size=8, tolerate=1), "train").plain(torch.arange(6))


def test_the_fingerprint_is_of_what_plain_returns(tmp_path):
    first = digits().fingerprint()
    assert digits(flip=True, workers=3).fingerprint() == first
    assert len({first, digits(size=8).fingerprint(), digits("held_out").fingerprint()}) == 3
    assert digits(resize="nearest").fingerprint() != first


def png_of_16_bits(colour_type, values, key):
    """A PNG of 16-bit values [H, W] or [H, W, 3] of which `key` is transparent; Pillow writes none of RGB."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
        (b"tRNS", key.astype(">u2").tobytes()),
    )
    body = b"".join(chunk(*part) for part in (*parts, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")))
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + body))


def test_16_bit_levels_and_colours_that_stand_for_transparent_lie_over_white():
    levels = np.array([[0, 30000, 30257, 65535]], np.uint16)
    assert np.array_equal(pixels(png_of_16_bits(0, levels, levels[:1, 1])), grey([[0, 255, 118, 255]]))
    colours = np.array([[[0, 0, 0], [30000, 1000, 2000], [65535, 0, 300]]], np.uint16)
    seen = pixels(png_of_16_bits(2, colours, colours[0, 1]))
    assert np.array_equal(seen, [[[0, 0, 0], [255, 255, 255], [255, 0, 1]]])
