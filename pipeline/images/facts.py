"""What is known of a recipe's images without decoding one, and whether they are still those of an earlier time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.datasets.base import MissingImages, Split
from pipeline.draws import mix
from pipeline.images.reading import Images
from pipeline.recipes.data import Data

SPLITS: tuple[Split, ...] = ("train", "held_out")
TITLES = {"train": "training", "held_out": "held-out"}
CAPTIONS = "captions"  # of both splits, what a result may depend on as on a split


@dataclass(frozen=True)
class SplitFacts:
    """A split as it is now."""

    fingerprint: str  # of its images, as they are made ready
    images: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]  # images of each class; empty without classes
    has_captions: bool = False  # known where captions are asked for
    captions: str = ""  # a hash of all captions, where they are asked for

    def as_note(self) -> dict[str, Any]:
        """What an artefact records of the images that it is made of."""
        return {"fingerprint": self.fingerprint, "images": self.images}


def split_facts(data: Data, split: Split, captions: bool = False) -> SplitFacts:
    """Read names, states and labels, and with `captions` these too.

    ValueError where the source cannot be used, MissingImages where it is not here.
    """
    images = Images(data, split)
    source, counts = images.source, tuple(images.source.class_counts())
    of_captions = (source.has_captions, source.caption_fingerprint()) if captions else ()
    return SplitFacts(images.fingerprint(), len(images), tuple(images.class_names), counts, *of_captions)


def notes_of(facts: Mapping[str, SplitFacts], captions: bool) -> dict[str, dict[str, Any]]:
    """By split, what a result made of it depends on; under CAPTIONS what one made of the captions of all depends on."""
    notes = {split: known.as_note() for split, known in facts.items()}
    if captions:
        every = [known.captions for known in facts.values()]
        images = sum(known.images for known in facts.values())
        notes[CAPTIONS] = {"fingerprint": f"{mix(*every):016x}", "images": images}
    return notes


class UsedImages:
    """The images of a recipe as they were when a command began.

    Where they are not on this machine any more, those that a run's artefacts were made of are taken for them, so that a
    finished run can be sampled and published without its images. `recorded` are the notes of the artefacts; with
    `captions` those of both splits are looked at, too. Raises MissingImages where the images are not here, and nothing
    was made of them.
    """

    def __init__(self, data: Data, recorded: Iterable[dict[str, Any]], captions: bool = False):
        self.data, self.captions = data, captions
        self.facts: dict[str, SplitFacts] = {}
        self.missing: MissingImages | None = None
        self.notes: dict[str, dict[str, Any]] = {}  # by split, what a result made of it depends on
        try:
            self.facts = {split: split_facts(data, split, captions) for split in SPLITS}
            self.notes = notes_of(self.facts, captions)
        except MissingImages as error:
            self.missing = error
            for note in recorded:
                self.notes |= note.get("images", {})
            if not self.notes:
                raise

    def of(self, splits: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What a result that is made of `splits` depends on."""
        if not set(splits) <= self.notes.keys():
            raise self.missing
        return {split: self.notes[split] for split in splits}

    def check_unchanged(self, splits: Sequence[str]) -> None:
        """ValueError where images are others than when the command began, or are not here."""
        if splits and self.missing is not None:
            raise self.missing
        captions = CAPTIONS in splits
        looked_at = SPLITS if captions else splits
        now = notes_of({split: split_facts(self.data, split, captions) for split in looked_at}, captions)
        for split in splits:
            if what := describe_change(self.of([split]), {split: now[split]}):
                raise ValueError(f"{what} while this command ran; give it again, to begin with what they are now")

    def change_since(self, notes: Iterable[dict[str, Any]]) -> str | None:
        """How images differ from those that artefacts with these notes were made of; None where they do not."""
        then: dict[str, dict[str, Any]] = {}
        for note in notes:
            then |= note.get("images", {})
        return describe_change(then, self.notes)


def describe_change(then: dict[str, Any], now: dict[str, Any]) -> str | None:
    """`the training images have changed (20 then, 24 now)`; None where they are the same in every split."""
    changed = [split for split in now if split in then and then[split] != now[split]]
    if changed == [CAPTIONS]:
        return "the captions have changed"
    if not (changed := [split for split in changed if split != CAPTIONS]):
        return None
    counts = [(then[split]["images"], now[split]["images"]) for split in changed]
    numbers = "; ".join(
        f"{before} then, {after} now" if before != after else f"{after} as then" for before, after in counts
    )
    return f"the {' and '.join(TITLES[split] for split in changed)} images have changed ({numbers})"
