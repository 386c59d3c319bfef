"""A sweep as a page, as Markdown, as figures, and as part of a run's report."""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files.writing import write_text
from pipeline.images import grids
from pipeline.images.files import image_file, read_pixels
from pipeline.reporting.markdown_text import markdown_text
from pipeline.reporting.number_text import format_number
from pipeline.reporting.page import (
    ARROWS,
    Picture,
    arrow_html,
    capitalise,
    document,
    entry_html,
    number_html,
    picture,
    protocol_summary,
    section,
)
from pipeline.reporting.plots import Plot, Series, draw_plot

SWEEP = "sweep.json"
SHOWN = 12  # images of every point
CAPTIONS = {  # of the pictures, by file, in the order they are shown
    "grid.png": "One setting per row, in the order above; one seed and class per column; not selected.",
    "distance.png": "Fréchet distance of the samples.",
    "manifold.png": "Precision and recall of the samples.",
}


def write_sweep(out: Path, sweep: dict[str, Any], folders: list[Path]) -> None:
    """sweep.md, index.html and their pictures in `out`; `folders` hold the first images of every point."""
    rows = [
        np.stack([read_pixels(image_file(folder, i)) for i in range(SHOWN) if image_file(folder, i).exists()])
        for folder in folders
    ]
    across = grids.columns(rows[0].shape[1:3])
    grids.grid([row[:across] for row in rows], row_names(sweep["points"])).save(out / "grid.png")
    draw_figures(sweep["points"], out)
    write_text(out / "sweep.md", markdown(sweep))
    body = [
        f"<header><p class=kicker>Tessera sweep</p><h1>{escape(sweep['name'])}</h1></header>",
        section("Samples by setting", sweep_section(sweep, out)),
        f"<footer>All numbers in full, with their protocols, are in {SWEEP} beside this page.</footer>",
    ]
    write_text(out / "index.html", document(f"{sweep['name']}, sweep", body))


def sweep_section(sweep: dict[str, Any], folder: Path) -> str:
    """Pictures and table of a sweep in `folder`, as HTML."""
    figures = [
        Picture("Sweep", caption, folder / name, pixelated=name == "grid.png", plot=name != "grid.png")
        for name, caption in CAPTIONS.items()
        if (folder / name).is_file()
    ]
    return "".join([f"<p class=caption>{escape(summary(sweep))}</p>", *map(picture, figures), table(sweep["points"])])


def summary(sweep: dict[str, Any]) -> str:
    names = " and ".join(name.replace("_", " ") for name in sweep["points"][0]["values"])
    images = sweep["points"][0]["sampling"]["images"]
    return f"{len(sweep['points'])} settings of {names} · {images} samples each, of the same seeds and classes"


def point_name(values: dict[str, Any]) -> str:
    """A point's name: its values with what they are of."""
    names = {name: name.removeprefix("sampler.").translate(str.maketrans("._", "  ")) for name in values}
    return ", ".join(f"{names[name]} {value_text(value)}" for name, value in values.items())


def row_names(points: list[dict[str, Any]]) -> list[str]:
    """Short names of points: the values that are not all the same, and what of where it is one."""
    names = [n for n in points[0]["values"] if len({value_text(point["values"][n]) for point in points}) > 1]
    if len(names) < 2:
        return [point_name({n: point["values"][n] for n in names or point["values"]}) for point in points]
    return [" · ".join(value_text(point["values"][n]) for n in names) for point in points]


def value_text(entry: Any) -> str:
    if isinstance(entry, (list, tuple)):
        return "–".join(map(value_text, entry))
    return f"{entry:g}" if isinstance(entry, float) else str(entry)


def best_points(points: list[dict[str, Any]], key: str) -> set[int]:
    """The points that are best by a number, where not all are, and where one direction is better."""
    values, better = [point["numbers"][key]["value"] for point in points], points[0]["numbers"][key]["better"]
    if better == "neither" or len(set(values)) < 2:
        return set()
    top = (max if better == "higher" else min)(values)
    return {i for i, value in enumerate(values) if value == top}


def common_entries(protocols: list[dict[str, Any]]) -> dict[str, Any]:
    """The entries that all protocols have alike; of nested ones, those of theirs."""
    common = {}
    for key, entry in protocols[0].items():
        others = [protocol.get(key) for protocol in protocols]
        if all(isinstance(other, dict) for other in others):
            common[key] = common_entries(others)
        elif all(other == entry for other in others):
            common[key] = entry
    return common


def table(points: list[dict[str, Any]]) -> str:
    """A row a number, a column a point, the best in bold; below each number its meaning and its protocol."""
    head = "".join(f"<th>{escape(point_name(point['values']))}" for point in points)
    rows = "".join(row(points, key) for key in points[0]["numbers"])
    return (
        f"<div class=scroll><table class=runs><thead><tr><th>number{head}<th>real held-out</thead>{rows}</table></div>"
    )


def row(points: list[dict[str, Any]], key: str) -> str:
    numbers, top = [point["numbers"][key] for point in points], best_points(points, key)
    first = numbers[0]
    texts = [number_html(number["value"], first["unit"]) for number in numbers]
    cells = "".join(f"<td><b>{text}</b>" if i in top else f"<td>{text}" for i, text in enumerate(texts))
    protocol = common_entries([number["protocol"] for number in numbers])
    entries = [f"<dt>{escape(name.replace('_', ' '))}<dd>{entry_html(entry)}" for name, entry in protocol.items()]
    note = f"<details><summary>{escape(protocol_summary(protocol))}</summary><dl>{''.join(entries)}</dl></details>"
    floor = number_html(first["held_out"], first["unit"])
    return (
        f"<tbody><tr><th>{escape(first['title'])} {arrow_html(first['better'])}{cells}<td>{floor}</tr>"
        f"<tr class=note><td colspan={len(points) + 2}><div>{escape(capitalise(first['meaning']))}."
        f"{note}</div></tr></tbody>"
    )


def markdown(sweep: dict[str, Any]) -> str:
    points = sweep["points"]
    names = [markdown_text(point_name(point["values"])) for point in points]
    lines = [f"# {markdown_text(sweep['name'])}, sweep", "", markdown_text(summary(sweep)), ""]
    lines += [f"| number | {' | '.join(names)} | real held-out |", f"|---|{'--:|' * (len(points) + 1)}"]
    for key, first in points[0]["numbers"].items():
        top = best_points(points, key)
        texts = [markdown_text(format_number(point["numbers"][key]["value"], first["unit"])) for point in points]
        cells = [f"**{text}**" if i in top else text for i, text in enumerate(texts)]
        floor = "–" if first["held_out"] is None else markdown_text(format_number(first["held_out"], first["unit"]))
        title = f"{markdown_text(first['title'])} {ARROWS.get(first['better'], '')}"
        lines.append(f"| {title} | {' | '.join(cells)} | {floor} |")
    return "\n".join([*lines, "", f"All numbers in full, with their protocols, are in {SWEEP}.", ""])


def draw_figures(points: list[dict[str, Any]], out: Path) -> None:
    """The distance, and precision with recall, by the first setting whose values are numbers; nothing where none is."""
    name = next((name for name, it in points[0]["values"].items() if isinstance(it, (int, float))), None)
    if name is None or len({point["values"][name] for point in points}) < 2:
        return
    keys = list(points[0]["numbers"])
    distance = next(key for key in keys if key.startswith("fd_"))
    chosen = {"distance.png": [distance]}
    chosen["manifold.png"] = [key for key in keys if key.startswith(("precision_", "recall_"))][:2]
    for file, of in chosen.items():
        series = [line for key in of for line in series_of(points, name, key, named=len(of) > 1)]
        if series:
            title = points[0]["numbers"][of[0]]["title"] if len(of) == 1 else "share"
            draw_plot(Plot(name.replace("_", " "), title, series), out / file)


def series_of(points: list[dict[str, Any]], name: str, key: str, named: bool) -> list[Series]:
    """A number by a setting: a line for every combination of the other ones."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        others = point_name({other: it for other, it in point["values"].items() if other != name})
        groups.setdefault(others, []).append((point["values"][name], point["numbers"][key]["value"]))
    title = points[0]["numbers"][key]["title"] if named else ""
    series = []
    for others, line in groups.items():
        across, down = zip(*sorted(line))
        series.append(Series(" · ".join(part for part in (title, others) if part), list(across), list(down)))
    return series
