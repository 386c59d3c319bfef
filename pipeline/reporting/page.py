"""What pages are made of: numbers with their protocols, pictures and sections, in one HTML file with all it shows."""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from pipeline.reporting.number_text import format_number
from pipeline.reporting.style import STYLE

BESIDE = {"before training": "before", "real held-out images": "held_out"}
COLUMNS = {"before": "before training", "held_out": "real held-out", "ratio": "ratio"}  # beside a number itself
ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}


@dataclass
class Picture:
    title: str
    caption: str
    path: Path
    pixelated: bool = False  # enlarged images, whose pixels are to stay squares
    wide: bool = False  # rather scrolled than shrunk on a narrow screen
    plot: bool = False  # drawn finer than it is shown


def document(title: str, body: list[str], refresh: int = 0) -> str:
    """A whole page that holds all it shows; with `refresh` a browser asks for it again after so many seconds."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    page = f"<!doctype html><html lang=en><head>{head}<title>{escape(title)} · Tessera</title>{STYLE}</head>"
    return f"{page}<body><main>{''.join(body)}</main></body></html>\n"


def headline_tiles(numbers: dict[str, dict[str, Any]]) -> str:
    """A tile a number, with its protocol in brief on hover, that leads to the number in full."""
    tiles = []
    for key, number in numbers.items():
        if number["headline"]:
            ratio = number["ratio"] is not None
            large = format_number(number["ratio"], "×") if ratio else format_number(number["value"], number["unit"])
            small = "of real held-out images" if ratio else compared_text(number)
            about = escape(f"{capitalise(number['meaning'])}. {protocol_summary(number['protocol'])}", quote=True)
            text = f"<b>{escape(large)}</b><span>{escape(number['title'])}</span><i>{escape(small)}</i>"
            tiles.append(f'<a class=tile href="#{anchor(key)}" title="{about}">{text}</a>')
    return f"<div class=tiles>{''.join(tiles)}</div>"


def compared_text(number: dict[str, Any]) -> str:
    """What a number is to be seen beside, where there is such: the same before training, or of real images."""
    for title, name in BESIDE.items():
        if number.get(name) is not None:
            return f"{title}: {format_number(number[name], number['unit'])}"
    return ""


def numbers_section(
    title: str, pictures: list[Picture], numbers: dict[str, dict[str, Any]], inner: bool = False
) -> str:
    """What belongs together under one title: the pictures, then the numbers; `inner` when it is part of a section."""
    content = "".join([*map(picture, pictures), table(numbers) if numbers else ""])
    return f"<h3>{escape(title)}</h3>{content}" if inner else section(title, content)


def table(numbers: dict[str, dict[str, Any]]) -> str:
    """One block a number: value, floor and ratio, the sentence that explains it, and its whole protocol."""
    columns = [name for name in COLUMNS if any(number.get(name) is not None for number in numbers.values())]
    head = "".join(f"<th>{COLUMNS[name]}" for name in columns)
    rows = "".join(row(key, number, columns) for key, number in numbers.items())
    return f"<div class=scroll><table><thead><tr><th>number<th>here{head}</thead>{rows}</table></div>"


def row(key: str, number: dict[str, Any], columns: Sequence[str]) -> str:
    arrow = arrow_html(number["better"])
    units = {name: "×" if name == "ratio" else number["unit"] for name in columns}
    floor = "".join(f"<td>{number_html(number.get(name), unit)}" for name, unit in units.items())
    details = "".join(f"<dt>{escape(k.replace('_', ' '))}<dd>{number_html(v)}" for k, v in number["details"].items())
    protocol = "".join(f"<dt>{escape(k.replace('_', ' '))}<dd>{entry_html(v)}" for k, v in number["protocol"].items())
    return (
        f"<tbody id={anchor(key)}>"
        f"<tr><th>{escape(number['title'])} {arrow}"
        f"<td>{number_html(number['value'], number['unit'])}{floor}</tr>"
        f"<tr class=note><td colspan={2 + len(columns)}>{escape(capitalise(number['meaning']))}."
        f"<details><summary>{escape(protocol_summary(number['protocol']))}</summary><dl>{details}{protocol}</dl></details>"
        "</tr></tbody>"
    )


def protocol_summary(protocol: dict[str, Any]) -> str:
    """What a number was measured on, in one line."""
    parts = [str(protocol[key]) for key in ("images", "references") if key in protocol]
    if features := protocol.get("features", protocol.get("judge")):
        parts.append(f"features: {features['kind']}")
    if sampling := protocol.get("sampling"):
        scale = sampling.get("guidance", {}).get("scale")
        parts.append(f"{sampling['steps']} steps" if "steps" in sampling else "")
        parts.append(f"guidance {scale:g}" if scale is not None else "")
    return " · ".join(part for part in parts if part)


def entry_html(entry: Any) -> str:
    """A protocol entry as HTML: mappings as nested lists, anything else as its JSON or text."""
    if isinstance(entry, dict):
        return (
            "<dl>"
            + "".join(f"<dt>{escape(str(k).replace('_', ' '))}<dd>{entry_html(v)}" for k, v in entry.items())
            + "</dl>"
        )
    return escape(entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False))


def picture(item: Picture) -> str:
    kind = " class=pixelated" if item.pixelated else " class=plot" if item.plot else ""
    data = base64.b64encode(item.path.read_bytes()).decode()
    image = f'<img{kind} alt="{escape(item.title)}" src="data:image/png;base64,{data}">'
    return f"<figure class={'wide' if item.wide else 'fit'}>{image}</figure><p class=caption>{escape(item.caption)}</p>"


def section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def number_html(number: float | None, unit: str = "") -> str:
    """A number as shown, its every digit kept beside it for machines; a dash where there is none."""
    return (
        "–" if number is None else f'<data value="{escape(repr(number))}">{escape(format_number(number, unit))}</data>'
    )


def anchor(key: str) -> str:
    """A number's key as a name in a page and of a file: letters, digits and underscores alone."""
    return re.sub(r"\W", "_", key)


def arrow_html(better: str) -> str:
    """Which way a number is better."""
    return f'<small title="{escape(better)} is better">{ARROWS.get(better, "")}</small>'


def capitalise(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
