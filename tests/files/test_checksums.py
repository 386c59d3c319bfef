"""A folder's record of sizes and sha256: what was changed since is named."""

import pytest

from pipeline.files.checksums import CHECKSUMS, check_content, check_sizes, recorded_in, write_checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "weights").write_bytes(b"0123456789")
    (tmp_path / "inner" / "config").write_bytes(b"abc")
    write_checksums(tmp_path)
    return tmp_path


def test_what_is_whole_passes_and_what_is_added_does_not_count(folder):
    (folder / "new").touch()
    check_content(folder, "delete it")
    assert list(recorded_in(folder)) == ["inner/config", "weights"]
    check_content(folder / "inner", "a folder without a record is not checked")


def test_the_size_is_always_compared_and_the_content_when_it_is_read(folder):
    (folder / "weights").write_bytes(b"0123456798")
    check_sizes(folder, "delete it")
    with pytest.raises(ValueError, match="weights is damaged: it is not what was written; delete it"):
        check_content(folder, "delete it")
    check_content(folder, "delete it", lambda name: name.startswith("inner/"))
    (folder / "weights").write_bytes(b"01234")
    with pytest.raises(ValueError, match="weights is damaged: it has 5 bytes, and was written with 10; delete it"):
        check_sizes(folder, "delete it")
    (folder / "weights").unlink()
    with pytest.raises(ValueError, match="weights is missing; delete it"):
        check_content(folder, "delete it")


@pytest.mark.parametrize("content", ["", "[]", '{"weights": 3}', '{"weights": {"byte": 10, "sha256": "a"}}'])
def test_a_damaged_record_is_named(content, folder):
    (folder / CHECKSUMS).write_text(content)
    with pytest.raises(ValueError, match=f"{CHECKSUMS} is damaged"):
        check_content(folder, "delete it")
