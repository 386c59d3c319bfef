"""The 1,797 scanned digits that come with scikit-learn: 8x8 pixels, 17 grey levels, ten classes."""

import hashlib

import numpy as np
from PIL import Image

from pipeline.datasets.base import Record, Source, Split
from pipeline.draws import mix


class Digits(Source):
    """Alpaydin & Kaynak, Optical Recognition of Handwritten Digits (UCI); the test part, which scikit-learn bundles.

    Held out, for ever, is a fifth of every class: those whose row number hashes lowest.
    """

    class_names = [str(digit) for digit in range(10)]

    def __init__(self, split: Split = "train"):
        from sklearn.datasets import load_digits  # half a second that a recipe of other images need not wait for

        scans = load_digits()
        held_out = np.isin(np.arange(len(scans.target)), _fifth(scans.target))
        self.rows = np.flatnonzero(held_out == (split == "held_out"))
        self.pixels = np.rint(scans.images[self.rows] * 255 / 16).astype(np.uint8)  # [n, 8, 8]
        self.labels = scans.target[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Record:
        image = Image.fromarray(self.pixels[index])
        return Record(image, self.label_of(index), name=f"digit {self.rows[index]}")

    def label_of(self, index: int) -> int:
        return int(self.labels[index])

    def fingerprint(self) -> str:
        return hashlib.sha256(self.pixels.tobytes() + self.labels.astype(np.int64).tobytes()).hexdigest()[:16]


def _fifth(labels: np.ndarray) -> list[int]:
    """Row numbers of the held-out fifth, class by class."""
    chosen: list[int] = []
    for digit in range(10):
        rows = sorted(np.flatnonzero(labels == digit).tolist(), key=lambda row: mix("digits", row))
        chosen += rows[: round(len(rows) / 5)]
    return chosen
