"""A run's report as one page, written from the files in the run's folder, and again when a sweep or a card is added."""

from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from pipeline.files.writing import write_json, write_text
from pipeline.planning.line_progress import duration
from pipeline.reporting.card_page import card_section
from pipeline.reporting.page import Picture, document, headline_tiles, numbers_section, section
from pipeline.reporting.sweep_page import SWEEP, sweep_section
from pipeline.runs.finished import CARD, last_tokenizer, sha256_of_tokenizer
from pipeline.runs.workspace import read_values

PAGE, NUMBERS, REPORT = "page.json", "metrics.json", "index.html"


def save_report(
    folder: Path,
    name: str,
    summary: str,
    pictures: list[Picture],
    notes: dict[str, dict[str, Any] | None],
    settings: str,
) -> None:
    """Keep in `folder` what a report's page shows beside its numbers: pictures that lie there, settings, and the
    made_from.json of every artefact, or None."""
    listed = [asdict(picture) | {"path": picture.path.name} for picture in pictures]
    content = {"name": name, "summary": summary, "pictures": listed, "notes": notes, "settings": settings}
    write_json(folder / PAGE, content)


def refresh_report(run: Path) -> None:
    """Make the page of a run's report again, where there is a report."""
    if (run / "report" / PAGE).is_file():
        render_report(run, run / "report")


def render_report(run: Path, folder: Path) -> None:
    """Write index.html of the report in `folder`, with the sweep and the card of `run` where they are of the same."""
    content, flat = (read_values(folder, name) for name in (PAGE, NUMBERS))
    pictures = [Picture(**picture | {"path": folder / picture["path"]}) for picture in content["pictures"]]
    numbers: dict[str, dict[str, Any]] = {}
    for key, number in flat.items():
        numbers.setdefault(number["group"], {})[key] = number
    titles = dict.fromkeys([*(p.title for p in pictures if p.title in numbers), *numbers, *(p.title for p in pictures)])
    parts = {
        title: numbers_section(title, [p for p in pictures if p.title == title], numbers.get(title, {}))
        for title in titles
    }
    body = [
        f"<header><p class=kicker>Tessera report</p><h1>{escape(content['name'])}</h1>"
        f"<p>{escape(content['summary'])}</p></header>",
        headline_tiles(flat),
        timeline(content["notes"]),
        parts.pop("Samples", ""),
        sweep_of(run, content["notes"]),
        *parts.values(),
        card_of(run, flat),
        section(
            "Settings",
            f"<details><summary>the whole recipe</summary><pre>{escape(content['settings'])}</pre></details>",
        ),
        footer(content["notes"]),
    ]
    write_text(folder / REPORT, document(content["name"], body))


def sweep_of(run: Path, notes: dict[str, dict[str, Any] | None]) -> str:
    """The sweep of a run, where it is of the generator and the decoder that the report is of."""
    folder = run / "sweep"
    if not (folder / SWEEP).is_file():
        return ""
    sweep = read_values(folder, SWEEP)
    if any((notes.get(name) or {}).get("hash") != recorded for name, recorded in sweep["made_of"].items()):
        return ""
    return section("Guidance sweep", sweep_section(sweep, folder))


def card_of(run: Path, numbers: dict[str, dict[str, Any]]) -> str:
    """The numbers of a run's card that the report does not have, where it is of the decoder that the report is of."""
    file = run / "card" / CARD
    if not file.is_file():
        return ""
    card = read_values(file.parent, CARD)
    if card["about"]["sha256"] != sha256_of_tokenizer(last_tokenizer(run)):
        return ""
    return section("Tokenizer card", card_section(card, file.parent, leave_out=numbers))


def timeline(notes: dict[str, dict[str, Any] | None]) -> str:
    """The line: what each stage took, where that is known."""
    seconds = {key: note["seconds"] for key, note in notes.items() if note and "seconds" in note}
    if not seconds:
        return ""
    longest, total = max(seconds.values()), sum(seconds.values())
    rows = [
        f"<li><span>{escape(key)}</span>"
        f'<em><i style="width:{100 * taken / longest if longest else 0:.1f}%"></i></em><b>{duration(taken)}</b></li>'
        for key, taken in seconds.items()
    ]
    total_row = f"<li class=total><span>all of these</span><em></em><b>{duration(total)}</b></li>"
    return section("The line", f"<ul class=line>{''.join(rows)}{total_row}</ul>")


def footer(notes: dict[str, dict[str, Any] | None]) -> str:
    note = next((note for note in reversed(list(notes.values())) if note), {})
    facts = [f"{key}: {note[key]}" for key in ("command", "commit", "device", "processes", "python") if note.get(key)]
    facts += [f"{name} {version}" for name, version in note.get("versions", {}).items()]
    where = "All numbers in full, with their protocols, are in metrics.json beside this page."
    return f"<footer>{where}<br>{escape(' · '.join(facts))}</footer>"
