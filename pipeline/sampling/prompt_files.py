"""Prompts from files: a line each, or those of GenEval and DPG-Bench, whose images lie as evaluators read them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from pipeline.files.paths import given_path
from pipeline.files.writing import new_file, write_json
from pipeline.images.files import image_file
from pipeline.images.grids import tile


class Layout:
    """Where images lie in their folder: 000000.png, 000001.png, ..."""

    each: ClassVar[int] = 1  # images of a prompt where it is not said
    titles: ClassVar[str] = ""  # what it writes besides

    def image(self, out: Path, i: int) -> Path:
        """The file of image i."""
        return image_file(out, i)

    def finish(self, out: Path, each: int, images: int) -> None:
        """Write what an evaluator reads besides the images, of which there are `each` of every prompt."""


@dataclass(frozen=True)
class GenEval(Layout):
    """As GenEval's `evaluate_images.py` reads them: 00000/metadata.jsonl, 00000/samples/0000.png, ..., 00000/grid.png.

    Ghosh et al., arXiv:2310.11513; github.com/djghosh13/geneval.
    """

    metadata: Sequence[dict[str, Any]]
    count: int  # images of a prompt
    each: ClassVar[int] = 4

    def image(self, out: Path, i: int) -> Path:
        return out / f"{i // self.count:05d}" / "samples" / f"{i % self.count:04d}.png"

    def finish(self, out: Path, each: int, images: int) -> None:
        for number in range(-(-images // each)):
            shown = [Image.open(self.image(out, i)) for i in range(number * each, min((number + 1) * each, images))]
            folder = out / f"{number:05d}"
            write_json(folder / "metadata.jsonl", self.metadata[number], indent=None)
            with new_file(folder / "grid.png") as draft:
                tile(shown, min(len(shown), 2)).save(draft)


@dataclass(frozen=True)
class DpgBench(Layout):
    """As DPG-Bench's `compute_dpg_bench.py` reads them with --pic-num 4: one picture a prompt, its images two by two.

    Hu et al., arXiv:2403.05135; github.com/TencentQQGYLab/ELLA. The images themselves are in samples/.
    """

    names: Sequence[str]  # of the prompts
    each: ClassVar[int] = 4

    def image(self, out: Path, i: int) -> Path:
        return image_file(out / "samples", i)

    def finish(self, out: Path, each: int, images: int) -> None:
        for number in range(images // each):
            shown = [Image.open(self.image(out, number * each + i)) for i in range(each)]
            with new_file(out / f"{self.names[number]}.png") as draft:
                tile(shown, 2 if each > 1 else 1).save(draft)


@dataclass(frozen=True)
class PromptSet:
    """Prompts to sample, and where their images are to lie."""

    texts: list[str]
    source: str  # as it was given
    layout: Layout = field(default_factory=Layout)

    @property
    def each(self) -> int:
        """Images of a prompt where it is not said."""
        return self.layout.each

    def described(self) -> dict[str, Any]:
        """As samples.json tells it; the prompts of every image are in prompts.jsonl."""
        digest = hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()
        return {"from": self.source, "texts": len(self.texts), "sha256": digest}


def read_prompt_set(source: str, each: int | None = None) -> PromptSet:
    """The prompts of FILE, a line each (.jsonl: of records with `prompt`), of geneval:FILE, or of dpg:FOLDER.

    FILE is then GenEval's evaluation_metadata.jsonl, and FOLDER that of DPG-Bench's prompts, a text file each. Raises
    ValueError with one line where there are none.
    """
    benchmark, colon, place = source.partition(":")
    if colon and benchmark == "geneval":
        records = read_records(place)
        return PromptSet([record["prompt"] for record in records], source, GenEval(records, each or GenEval.each))
    if colon and benchmark == "dpg":
        files = sorted(given_path(place).glob("*.txt"))
        if not files:
            raise ValueError(f"prompts={source}: {place} holds no .txt file; name the folder of DPG-Bench's prompts")
        if each not in (None, 1, 4):
            raise ValueError(f"each={each}: a picture of DPG-Bench holds 4 images of a prompt, or 1; leave each out")
        return PromptSet([read_text(file).strip() for file in files], source, DpgBench([file.stem for file in files]))
    if source.endswith(".jsonl"):
        return PromptSet([record["prompt"] for record in read_records(source)], source)
    texts = [line.strip() for line in read_text(given_path(source)).splitlines()]
    if not any(texts):
        raise ValueError(f"prompts={source}: there is no prompt in it; write one a line")
    return PromptSet([text for text in texts if text], source)


def read_records(place: str) -> list[dict[str, Any]]:
    """The records of a .jsonl file, each with a `prompt`; ValueError naming the line that is none."""
    records = []
    for number, line in enumerate(read_text(given_path(place)).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place}, line {number}: {error}") from None
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise ValueError(f'{place}, line {number} has no text under "prompt"')
        records.append(record)
    if not records:
        raise ValueError(f"{place} holds no prompt")
    return records


def read_text(file: Path) -> str:
    """A text file in UTF-8; ValueError where it is none."""
    if not file.is_file():
        raise ValueError(f"prompts: there is no file {file}")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"prompts: {file} is no text in UTF-8") from None
