"""Archives from elsewhere: what asks for more memory than its file holds, or is damaged, is refused in one line."""

import io
import zipfile

import numpy as np
import pytest

from pipeline.features.statistics_file import check_reference
from pipeline.images import archives
from pipeline.images.archives import map_array, read_array
from pipeline.images.files import open_archive


def states(path, shape, body, compression=zipfile.ZIP_DEFLATED):
    """An archive whose arr_0 has a header of this shape and `body` in place of its pixels."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("arr_0.npy", header.getvalue() + body)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_array_larger_than_its_file_is_refused_before_memory_is_asked_for(tmp_path, compression):
    path = states(tmp_path / "a.npz", (150_000, 256, 256, 3), bytes(3000), compression)
    for read in (open_archive, lambda path: check_reference(str(path), ("pixels",))):
        with pytest.raises(ValueError, match=r"a.npz: arr_0.npy asks for 29.5 GB of memory, and its file holds"):
            read(path)


def test_an_array_that_unpacks_to_far_more_than_its_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "HARMLESS", 2**20)
    path = states(tmp_path / "zeros.npz", (3 * 2**20,), bytes(3 * 2**20))
    with pytest.raises(ValueError, match="asks for 0.0 GB of memory, and its file holds 0.0 MB"):
        read_array(path, "arr_0")
    noise = np.random.default_rng(0).integers(0, 255, 3 * 2**20, dtype=np.uint8)
    assert np.array_equal(read_array(states(tmp_path / "noise.npz", noise.shape, noise.tobytes()), "arr_0"), noise)


def test_what_is_no_array_of_numbers_is_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", arr_0=np.array([{}], dtype=object))
    whole = states(tmp_path / "whole.npz", (300_000,), np.random.default_rng(0).bytes(300_000)).read_bytes()
    (tmp_path / "flipped.npz").write_bytes(whole[:5000] + bytes(5) + whole[5005:])
    (tmp_path / "cut.npz").write_bytes(whole[:5000])
    for name, message in {
        "objects": "an array of object",
        "flipped": "damaged",
        "cut": "is no .npz archive, or is damaged",
    }.items():
        for read in (read_array, map_array):
            with pytest.raises(ValueError, match=message) as caught:
                read(tmp_path / f"{name}.npz", "arr_0")
            assert name in str(caught.value)


def test_a_reference_that_is_no_archive_is_named(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(ValueError, match="x.npz is no .npz archive"):
        check_reference(str(tmp_path / "x.npz"), ("pixels",))
