"""Captions beside pictures are read as they stand, and what is wrong with them is named by file and line."""

import pytest

from pipeline.files.caption_files import CaptionFiles

NAMES = ["a/1.png", "a/2.png", "b/deep/3.png", "4.png"]


def files(root, columns=(), **texts):
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, text in texts.items():
        file = root / name.replace("__", "/").replace("_csv", ".csv").replace("_jsonl", ".jsonl").replace(
            "_txt", ".txt"
        )
        file.write_text(text) if isinstance(text, str) else file.write_bytes(text)
    return CaptionFiles(root, NAMES, tuple(columns))


def test_text_files_hold_a_caption_in_a_line(tmp_path):
    found = files(tmp_path, a__1_txt="a red house\n\n  seen from below \n", **{"4_txt": " \n"})
    (tmp_path / "a/2.caption").write_bytes("\ufeffa blue house".encode())
    assert found.are_there
    assert [found.read(name) for name in NAMES] == [("a red house", "seen from below"), ("a blue house",), (), ()]
    assert not files(tmp_path / "other").are_there


def test_metadata_of_every_folder_is_read(tmp_path):
    rows = '{"file_name": "deep/3.png", "text": ["one", "two"]}\n\n{"file_name": "deep/3.png", "text": null}\n'
    found = files(tmp_path, metadata_csv='file_name,n,text\n4.png,1,"a, b"\na/1.png,2,\n', b__metadata_jsonl=rows)
    (tmp_path / "a/1.txt").write_text("not read, since the picture is in the metadata")
    (tmp_path / "a/2.txt").write_text("read")
    assert [found.read(name) for name in NAMES] == [(), ("read",), ("one", "two"), ("a, b",)]


def test_columns_are_those_stated_or_usual(tmp_path):
    table = "file_name,caption,short,text\n4.png,long,short,usual\n4.png,longer,,usual too\n"
    assert files(tmp_path, metadata_csv=table).read("4.png") == ("usual", "usual too")
    assert files(tmp_path, ["caption", "short"], metadata_csv=table).read("4.png") == ("long", "short", "longer")
    none = files(tmp_path, metadata_csv="file_name,label\n4.png,3\n")
    assert not none.are_there and none.read("4.png") == ()


@pytest.mark.parametrize(
    "texts, message",
    [
        ({"metadata_csv": "file_name,text\n4.png,a,b\n"}, r"line 2 of .*metadata.csv has 3 fields, not 2"),
        ({"metadata_csv": "file_name,text\n4.png,a\n4.png\n"}, r"line 3 of .*metadata.csv has 1 fields, not 2"),
        (
            {"metadata_csv": 'file_name,text\n4.png,"a\n'},
            r"the row after line 1 of .*metadata.csv is no CSV \(unexpected end",
        ),
        ({"metadata_csv": "file,text\n4.png,a\n"}, r"line 2 of .*metadata.csv has no file_name"),
        ({"metadata_csv": "file_name,text\n5.png,a\n"}, r"line 2 of .* names '5.png', which is no file below"),
        ({"metadata_csv": "file_name,text\n../x.png,a\n"}, r"line 2 of .* names '../x.png', which is no file below"),
        ({"metadata_jsonl": '{"file_name": "4.png", "text": 3}'}, r"caption: line 1 of .* holds 3, which is no text"),
        ({"metadata_jsonl": "\n{file_name"}, r"line 2 of .*metadata.jsonl is no JSON"),
        ({"metadata_jsonl": "[1]"}, r"line 1 of .*metadata.jsonl is no mapping"),
        ({"metadata_jsonl": "", "metadata_csv": ""}, r"holds metadata.csv and metadata.jsonl; leave one"),
        ({"4_txt": b"caf\xe9"}, r"4.txt is no UTF-8 \(byte 3\)"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, texts, message):
    with pytest.raises(ValueError, match=message) as error:
        files(tmp_path, **texts).read("4.png")
    assert "\n" not in str(error.value) and str(error.value).startswith("data.source")


def test_a_stated_column_has_to_be_there(tmp_path):
    with pytest.raises(ValueError, match="caption: line 2 of .* has no 'words'; it has: text"):
        files(tmp_path, ["words"], metadata_csv="file_name,text\n4.png,a\n").read("4.png")


def test_the_fingerprint_is_of_the_captions(tmp_path):
    before = files(tmp_path, a__1_txt="one").fingerprint()
    assert files(tmp_path).fingerprint() == before
    assert files(tmp_path, a__1_txt="two").fingerprint() != before
    assert files(tmp_path, a__1_txt="one", metadata_csv="file_name,text\n").fingerprint() != before
