"""The hash of files sees what they hold, wherever they lie, and reads no more of a large collection than it says."""

import os
import shutil

import pytest

from pipeline.files import content
from pipeline.files.content import hash_files

NAMES = ["a/1", "a/2", "b/3"]


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_bytes(bytes([number]) * 1000)
    return tmp_path / "own"


def rewrite(path, data):
    """Other content in the same bytes, at the same time."""
    state = path.stat()
    assert len(data) == state.st_size
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_one_byte_is_seen_at_the_same_size_and_time(folder):
    before = hash_files(folder, NAMES)
    rewrite(folder / "a/2", b"\1" * 500 + b"\0" + b"\1" * 499)
    assert hash_files(folder, NAMES) != before
    rewrite(folder / "a/2", b"\1" * 1000)
    assert hash_files(folder, NAMES) == before


def test_a_moved_and_a_copied_folder_are_the_same_and_other_names_are_not(folder, tmp_path):
    before = hash_files(folder, NAMES)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)  # with other times
    assert hash_files(tmp_path / "copy", NAMES) == before
    folder.rename(tmp_path / "moved")
    assert hash_files(tmp_path / "moved", NAMES) == before
    assert hash_files(tmp_path / "moved", NAMES[:2]) != before != hash_files(tmp_path / "moved", NAMES[::-1])
    (tmp_path / "moved/a/1").rename(tmp_path / "moved/a/one")
    assert hash_files(tmp_path / "moved", ["a/one", "a/2", "b/3"]) != before


def test_a_large_collection_is_sampled_with_times_and_from_the_first_block_to_the_last(folder, monkeypatch):
    monkeypatch.setattr(content, "WHOLE", 400)
    monkeypatch.setattr(content, "BLOCK", 100)
    monkeypatch.setattr(content, "SAMPLED", 2)
    before, seen = hash_files(folder, NAMES), []
    for name in NAMES:
        data = (folder / name).read_bytes()
        rewrite(folder / name, b"\7" + data[1:])
        first = hash_files(folder, NAMES) != before
        rewrite(folder / name, data[:-1] + b"\7")
        seen.append(first and hash_files(folder, NAMES) != before)
        rewrite(folder / name, data)
    assert sorted(seen) == [False, True, True], "two files of three are read, both ends of each"
    assert hash_files(folder, NAMES) == before
    os.utime(folder / NAMES[seen.index(False)], ns=(0, 1))
    assert hash_files(folder, NAMES) != before, "of the others the time counts"


def test_what_is_no_file_is_not_opened(folder):
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/nowhere/at/all")
    without = hash_files(folder, NAMES)
    assert len({without, hash_files(folder, [*NAMES, "pipe"]), hash_files(folder, [*NAMES, "link"])}) == 3
