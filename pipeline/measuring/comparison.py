"""Finished runs side by side: which numbers can be compared, which cannot and why, and what correlates with quality."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from pipeline.recipes.files import read
from pipeline.runs.finished import run_folder
from pipeline.runs.workspace import NOTE, OWNER, read_note, read_values

OF_THE_RUN = ("sampling", "versions", "codes", "seed")  # what a protocol says of the run, not of the measurement
TRAINED = ("tokenizer", "joint", "latents", "generator", "decoder")  # the artefacts whose making counts as training
TEXTS = ("title", "unit", "better", "group", "meaning")  # of a number
OF_DATA = {"source": None, "size": None, "channels": "rgb", "depth": 8, "crop": None, "resize": None}  # by default
FEWEST = 3  # runs that a rank correlation needs


@dataclass
class FinishedRun:
    """A run: its settings, and its numbers by key as metrics.json and card.json hold them."""

    name: str
    folder: Path
    numbers: dict[str, dict[str, Any]]
    settings: dict[str, Any]


@dataclass
class ComparedNumber:
    """One number over all runs; `groups` are the indices of runs that were measured alike, the largest group first."""

    key: str
    title: str
    unit: str
    better: str
    group: str
    meaning: str
    values: list[float | None]
    groups: list[list[int]]
    differs: dict[str, list[str]]  # what of the protocols is not the same, as each group has it

    @property
    def main(self) -> list[int]:
        return self.groups[0]


def read_runs(names: list[str]) -> list[FinishedRun]:
    """ValueError for fewer than two runs, one that is not there, and one of which nothing was measured."""
    if len(names) < 2:
        raise ValueError("compare needs two runs or more; name their folders, for example runs/digits runs/digits_ddpm")
    runs = [read_run(name) for name in names]
    names = [run.name for run in runs]
    for run in runs:
        run.name = str(run.folder) if names.count(run.name) > 1 else run.name
    return runs


def read_run(name: str) -> FinishedRun:
    """A run by its folder, or its name in runs/; ValueError where there is none, or nothing of it was measured."""
    if (folder := run_folder(name)) is None:
        raise ValueError(f"{name} is no run; name its folder, which holds {OWNER}, or its name in runs/")
    settings = read(folder / OWNER)
    report, card = read_values(folder / "report", "metrics.json"), read_values(folder / "card", "card.json")
    if report is None and card is None:
        raise ValueError(f"{folder} has neither report/ nor card/; run: python run.py evaluate RECIPE, or card")
    data = {name: settings["data"].get(name, usual) for name, usual in OF_DATA.items()}
    measured = read_note(folder / "report").get("images", {}) if (folder / "report" / NOTE).is_file() else {}
    data |= {f"{split} images": facts["fingerprint"] for split, facts in measured.items()}
    numbers = {
        key: number | {"protocol": number["protocol"] | {"data": data}} for key, number in (report or {}).items()
    }
    for key, number in (card or {}).get("numbers", {}).items():
        numbers.setdefault(key, number | {"group": f"Card: {number['group']}"})
    for key, number in numbers.items():
        if not is_number(number):
            raise ValueError(f"{folder}: what is said of {key!r} is no measured number; measure the run again")
    return FinishedRun(folder.resolve().name, folder, training_time(folder) | numbers, settings)


def is_number(number: Any) -> bool:
    """Whether a file holds a measured number here, with texts where texts belong."""
    value, texts = number.get("value"), [number.get(name, "") for name in TEXTS]
    known = value is None or isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and all(isinstance(text, str) for text in texts) and "title" in number


def training_time(folder: Path) -> dict[str, dict[str, Any]]:
    """Seconds that the artefacts of the line took, and on which machine; nothing where a note is missing."""
    line = read_note(folder / "report").get("reads", TRAINED) if (folder / "report" / NOTE).is_file() else TRAINED
    trained = [name for name in TRAINED if name in line]
    notes = {name: read_note(folder / name) if (folder / name / NOTE).is_file() else None for name in trained}
    if not all(note and "seconds" in note for note in notes.values()):
        return {}
    longest = notes["generator" if "generator" in notes else "tokenizer"]
    machine = {key: longest.get(key) for key in ("device", "processes", "precision")}
    number = {
        "title": "Training time",
        "value": sum(note["seconds"] for note in notes.values()),
        "unit": "s",
        "better": "lower",
        "meaning": "seconds that trained the parts of the line, and encoded the images, together",
        "group": "Cost",
        "protocol": machine,
        "details": {name: note["seconds"] for name, note in notes.items()},
    }
    return {"training_time": number}


def compare_numbers(runs: list[FinishedRun]) -> dict[str, ComparedNumber]:
    """Every number that any of the runs has, those of the first run first."""
    keys = dict.fromkeys(key for run in runs for key in run.numbers)
    return {key: compare_number(key, [run.numbers.get(key) for run in runs]) for key in keys}


def compare_number(key: str, numbers: list[dict[str, Any] | None]) -> ComparedNumber:
    """One number of every run, None where a run has none; runs with the same protocol form a group."""
    protocols = [None if number is None else measurement(number["protocol"]) for number in numbers]
    there = [i for i, protocol in enumerate(protocols) if protocol is not None]
    groups: list[list[int]] = []
    for i in there:
        alike = next((group for group in groups if protocols[group[0]] == protocols[i]), None)
        groups.append([i]) if alike is None else alike.append(i)
    groups.sort(key=lambda group: (-len(group), group[0]))
    names = dict.fromkeys(name for group in groups for name in protocols[group[0]])
    values = {name: [str(protocols[group[0]].get(name, "not given")) for group in groups] for name in names}
    first = numbers[there[0]]
    return ComparedNumber(
        key,
        first["title"],
        first.get("unit", ""),
        first.get("better", "neither"),
        first.get("group", ""),
        first.get("meaning", ""),
        [None if number is None else number["value"] for number in numbers],
        groups,
        {name: of_groups for name, of_groups in values.items() if len(set(of_groups)) > 1},
    )


def measurement(protocol: dict[str, Any]) -> dict[str, Any]:
    """How a number was measured, flat: its protocol without the settings of the run itself."""
    flat: dict[str, Any] = {}
    for name, value in protocol.items():
        if name in OF_THE_RUN:
            continue
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": entry for inner, entry in measurement(value).items()}
        else:
            flat[name] = value
    return flat


def choose_aim(numbers: dict[str, ComparedNumber], by: str | None) -> str:
    """The key of the generation distance: the given one, else the one that most runs can be compared by."""
    distances = [key for key in numbers if key.startswith(("fd_", "fid"))]
    if by is not None and by not in numbers:
        raise ValueError(f"by={by}: no run has such a number; there are: {', '.join(distances) or 'no distances'}")
    if by is None and not distances:
        raise ValueError("none of the runs has a distance of samples; run: python run.py evaluate RECIPE, or set by=")
    return by or max(distances, key=lambda key: len(numbers[key].main))


def correlations(numbers: dict[str, ComparedNumber], aim: ComparedNumber) -> list[dict[str, Any]]:
    """Spearman's rank correlation of every number with `aim` over the runs that can be compared in both.

    Signed so that 1 means: what is better by the one is better by the other. Left out are numbers without a direction,
    with fewer than `FEWEST` such runs, and those that are the same for all.
    """
    ranks = []
    for number in numbers.values():
        runs = max(([i for i in one if i in other] for one in number.groups for other in aim.groups), key=len)
        pairs = [[one.values[i] for i in runs] for one in (number, aim)]
        constant = any(len(set(values)) < 2 for values in pairs)
        if number is aim or number.better == "neither" or len(runs) < FEWEST or constant:
            continue
        sign = 1 if number.better == aim.better else -1
        value = sign * float(spearmanr(*pairs).statistic)
        ranks.append({"key": number.key, "title": number.title, "group": number.group, "rank": value, "runs": runs})
    return sorted(ranks, key=lambda entry: -abs(entry["rank"]))
