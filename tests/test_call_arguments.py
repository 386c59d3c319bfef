"""What a caller may write for labels and counts, and that anything else is refused in one line."""

import numpy as np
import pytest
import torch

from pipeline.call_arguments import count_images, find_label, find_labels, repeat_labels
from pipeline.components import conform

NAMES = {
    0: "crane, bird",
    1: "crane",
    2: "cafe\u0301",
    3: "great white shark",
    4: "great grey owl",
    5: "10",
    6: "2x",
    99: "far away",
}


@pytest.mark.parametrize(
    "asked, label",
    [
        ("crane", 1),  # the whole name, and not a synonym in a longer one
        ("crane, bird", 0),
        ("bird", 0),
        ("caf\u00e9", 2),
        ("cafe\u0301", 2),
        ("caf", 2),
        ("great w", 3),
        ("10", 5),
        ("010", 10),
        ("2", 6),  # a beginning comes before a number
        ("3", 3),
        ("0", 0),
        (3, 3),
    ],
)
def test_a_label_by_name_then_by_beginning_then_by_number(asked, label):
    assert find_label(asked, NAMES, 11) == label


@pytest.mark.parametrize(
    "asked, message",
    [
        ("great", "several classes are called 'great': 3, 4"),
        ("nothing", "there is no class called 'nothing'"),
        ("", "there is no class called ''"),
        ("11", "out of range"),
        ("far", "label 99 is out of range"),
        ("-1", "out of range"),
        (11, "out of range"),
        (True, "neither a label nor a class name"),
        (np.bool_(True), "neither a label nor a class name"),
        (1.5, "neither a label nor a class name"),
        (None, "neither a label nor a class name"),
        ([1], "neither a label nor a class name"),
        (b"crane", "neither a label nor a class name"),
        ({1}, "neither a label nor a class name"),
        (float("nan"), "neither a label nor a class name"),
    ],
)
def test_other_labels_are_refused_in_one_line(asked, message):
    with pytest.raises(ValueError, match=message) as error:
        find_labels([asked], None, NAMES, 11)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "asked",
    [
        [np.int64(0), np.uint8(1)],
        np.array([0, 1], dtype=np.int32),
        torch.tensor([0, 1]),
        list(torch.tensor([0, 1])),
        range(2),
        (0, torch.tensor(1)),
        [np.str_("crane, bird"), "crane"],
    ],
    ids=str,
)
def test_numbers_and_texts_of_numpy_and_torch_and_ranges(asked):
    labels = find_labels(asked, None, NAMES, 11)
    assert labels == [0, 1] and all(type(label) is int for label in labels)


def test_one_label_of_numpy_or_torch_is_repeated():
    for one in (np.int64(1), torch.tensor(1), torch.tensor(1, dtype=torch.int32), 1, "crane"):
        assert find_labels(one, 3, NAMES, 11) == [1, 1, 1] and find_labels(one, None, NAMES, 11) == [1]
    assert repeat_labels([1, 2], np.int64(2)) == [1, 1, 2, 2]


@pytest.mark.parametrize("value", [1.5, "2", True, 0, -1, np.float32(1.5), float("nan"), [1]])
def test_counts_that_are_none(value):
    for ask in (
        lambda: find_labels(1, value, NAMES, 11),
        lambda: repeat_labels([1], value),
        lambda: count_images(None, value, None, None),
    ):
        with pytest.raises(ValueError, match="num_images") as error:
            ask()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "value, hint, found", [(np.int64(2), int, 2), (np.float32(2), int, 2), (np.float32(0.5), float, 0.5)]
)
def test_settings_take_scalars_of_numpy_and_torch(value, hint, found):
    for given in (value, torch.tensor(value), torch.tensor(value)[None][0]):
        assert conform(given, hint, "steps") == found and type(conform(given, hint, "steps")) is hint
    assert conform(np.array([0.0, 0.5]), tuple[float, float], "interval") == (0.0, 0.5)
