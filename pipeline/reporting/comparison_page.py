"""A comparison of runs as a page, as Markdown and as JSON."""

from html import escape
from pathlib import Path
from typing import Any

from pipeline.files.writing import write_json, write_text
from pipeline.measuring.comparison import ComparedNumber, FinishedRun
from pipeline.reporting.markdown_text import markdown_text
from pipeline.reporting.number_text import format_number
from pipeline.reporting.page import (
    ARROWS,
    Picture,
    anchor,
    arrow_html,
    capitalise,
    document,
    number_html,
    picture,
    section,
)
from pipeline.reporting.plots import Plot, Series, draw_plot

RECONSTRUCTION = ("psnr", "rfd_classifier", "rfd_rotation", "rfd_pixels")  # drawn against generation, where there
WARNING = "Values with a letter were measured differently from those without: they cannot be compared."
WARNING_OF_RINGS = "Rings were measured differently from dots, and cannot be compared with them."


def write_comparison(
    out: Path, runs: list[FinishedRun], lines: list[ComparedNumber], aim: ComparedNumber, ranks: list[dict[str, Any]]
) -> None:
    """index.html, comparison.md, comparison.json and the figures, in the folder `out`."""
    names, by_key = [run.name for run in runs], {line.key: line for line in lines}
    write_json(out / "comparison.json", comparison_json(runs, lines, aim, ranks))
    write_text(out / "comparison.md", markdown(names, lines, aim, ranks))
    pictures = draw(out, names, by_key, aim)
    body = [
        f"<header><p class=kicker>Tessera comparison</p><h1>{len(runs)} runs</h1>"
        f"<p>{escape(' · '.join(f'{i} {run.folder}' for i, run in enumerate(runs, 1)))}</p></header>",
        *(
            section(title, "".join(picture(item) for item in pictures if item.title == title))
            for title in dict.fromkeys(item.title for item in pictures)
        ),
        section("Rank correlation with sample quality", rank_table(ranks, aim, names)),
        *(
            section(group, table(names, [line for line in lines if line.group == group]))
            for group in dict.fromkeys(line.group for line in lines)
        ),
        f"<footer>{WARNING} All of this is in comparison.json, each protocol in full in the runs' own files.</footer>",
    ]
    write_text(out / "index.html", document(f"{len(runs)} runs", body))


def group_letters(line: ComparedNumber) -> dict[int, str]:
    """A letter for every run that is not in the largest group of those measured alike."""
    return {i: chr(ord("a") + min(place, 25)) for place, group in enumerate(line.groups[1:]) for i in group}


def best_runs(line: ComparedNumber) -> set[int]:
    """The best of the runs that can be compared, where there are two or more and one direction is better."""
    values = {i: line.values[i] for i in line.main}
    if len(values) < 2 or line.better == "neither":
        return set()
    top = (max if line.better == "higher" else min)(values.values())
    return {i for i, value in values.items() if value == top}


def table(names: list[str], lines: list[ComparedNumber]) -> str:
    head = "".join(f"<th>{i} {escape(name)}" for i, name in enumerate(names, 1))
    rows = "".join(row(line, len(names)) for line in lines)
    return f"<div class=scroll><table class=runs><thead><tr><th>number{head}</thead>{rows}</table></div>"


def row(line: ComparedNumber, runs: int) -> str:
    marks, top = group_letters(line), best_runs(line)
    cells = "".join(cell(line, i, marks.get(i), i in top) for i in range(runs))
    note = (
        f"<tr class=note><td colspan={runs + 1}><div>{escape(capitalise(line.meaning))}.{differences(line)}</div></tr>"
    )
    head = f"<th>{escape(line.title)} {arrow_html(line.better)}"
    return f"<tbody id={anchor(line.key)}><tr>{head}{cells}</tr>{note}</tbody>"


def cell(line: ComparedNumber, run: int, mark: str | None, top: bool) -> str:
    text = number_html(line.values[run], line.unit)
    if mark:
        return f"<td class=apart>{text}<sup>{mark}</sup>"
    return f"<td><b>{text}</b>" if top else f"<td>{text}"


def differences(line: ComparedNumber) -> str:
    """Why not all runs can be compared by this number, as HTML."""
    if not line.differs:
        return ""
    marks = ["no letter", *(chr(ord("a") + min(place, 25)) for place in range(len(line.groups) - 1))]
    rows = "".join(
        f"<dt>{escape(name.replace('_', ' '))}<dd>"
        + "<br>".join(f"{escape(mark)}: {escape(value)}" for mark, value in zip(marks, values))
        for name, values in line.differs.items()
    )
    what = ", ".join(name.replace("_", " ") for name in list(line.differs)[:3])
    return f"<details><summary>Not all comparable: {escape(what)} differ</summary><dl>{rows}</dl></details>"


def rank_table(ranks: list[dict[str, Any]], aim: ComparedNumber, names: list[str]) -> str:
    """Rank correlations with the aim, the strongest first."""
    if not ranks:
        return f"<p>No rank correlation with {escape(aim.title)}: it takes three runs measured alike.</p>"
    rows = "".join(
        f"<tbody><tr><th>{escape(entry['title'])} <small>{escape(entry['group'])}</small>"
        f"<td>{number_html(entry['rank'])}<td>{len(entry['runs'])}</tr></tbody>"
        for entry in ranks
    )
    about = (
        f"Spearman's rank correlation with {aim.title}: 1 where a run that is better by the number is also better by"
        " the distance. Of few runs it says little."
    )
    head = "<thead><tr><th>number<th>correlation<th>runs</thead>"
    return f"<p class=caption>{escape(about)}</p><div class=scroll><table>{head}{rows}</table></div>"


def draw(out: Path, names: list[str], lines: dict[str, ComparedNumber], aim: ComparedNumber) -> list[Picture]:
    """Generation against training time and against reconstruction, as far as two runs have both."""
    titles = {"training_time": "Quality and training time"} | dict.fromkeys(
        RECONSTRUCTION, "Reconstruction and generation"
    )
    pictures = []
    for key, title in titles.items():
        line = lines.get(key)
        if line is None:
            continue
        there = [i for i in range(len(names)) if line.values[i] is not None and aim.values[i] is not None]
        if len(there) < 2:
            continue
        hollow = [i not in line.main or i not in aim.main for i in there]
        points = [[one.values[i] for i in there] for one in (line, aim)]
        series = Series("runs", *points, [str(i + 1) for i in there], hollow)
        path = out / f"{anchor(aim.key)}_by_{key}.png"
        draw_plot(Plot(axis(line), axis(aim), [series], needs_log_axis(points[0]), needs_log_axis(points[1])), path)
        caption = f"{aim.title} ({aim.better} is better) by {line.title} ({line.better} is better), runs by number."
        caption += f" {WARNING_OF_RINGS}" if any(hollow) else ""
        pictures.append(Picture(title, caption, path, plot=True))
    return pictures


def axis(line: ComparedNumber) -> str:
    return f"{line.title}, {line.unit}" if line.unit else line.title


def needs_log_axis(values: list[float]) -> bool:
    """Whether values span so much that only a logarithmic axis shows them all."""
    return min(values) > 0 and max(values) > 10 * min(values)


def markdown(names: list[str], lines: list[ComparedNumber], aim: ComparedNumber, ranks: list[dict[str, Any]]) -> str:
    text = [f"# {len(names)} runs", "", WARNING, ""]
    for group in dict.fromkeys(line.group for line in lines):
        heads = " | ".join(map(markdown_text, names))
        text += [f"## {markdown_text(group)}", "", f"| number | {heads} | not alike |"]
        text += [f"|---|{'--:|' * len(names)}---|"]
        for line in (line for line in lines if line.group == group):
            marks, top = group_letters(line), best_runs(line)
            cells = [markdown_cell(line, i, marks.get(i), i in top) for i in range(len(names))]
            differ = markdown_text(", ".join(name.replace("_", " ") for name in line.differs))
            title = f"{markdown_text(line.title)} {ARROWS.get(line.better, '')}"
            text.append(f"| {title} | {' | '.join(cells)} | {differ} |")
        text.append("")
    if ranks:
        text += [
            f"## Rank correlation with {markdown_text(aim.title)}",
            "",
            "| number | correlation | runs |",
            "|---|--:|--:|",
        ]
        rows = ((markdown_text(entry["title"]), format_number(entry["rank"]), len(entry["runs"])) for entry in ranks)
        text += [f"| {title} | {rank} | {runs} |" for title, rank, runs in rows]
    return "\n".join([*text, ""])


def markdown_cell(line: ComparedNumber, run: int, mark: str | None, top: bool) -> str:
    if line.values[run] is None:
        return "–"
    text = markdown_text(format_number(line.values[run], line.unit))
    return f"{text} ({mark})" if mark else f"**{text}**" if top else text


def comparison_json(
    runs: list[FinishedRun], lines: list[ComparedNumber], aim: ComparedNumber, ranks: list[dict[str, Any]]
) -> dict[str, Any]:
    """As comparison.json holds it: runs by name; of every number the values and which of them can be compared."""
    names = [run.name for run in runs]
    numbers = {
        line.key: {
            "title": line.title,
            "group": line.group,
            "unit": line.unit,
            "better": line.better,
            "values": dict(zip(names, line.values)),
            "comparable": [[names[i] for i in group] for group in line.groups],
            "differs": line.differs,
        }
        for line in lines
    }
    ranked = {entry["key"]: {"rank": entry["rank"], "runs": [names[i] for i in entry["runs"]]} for entry in ranks}
    folders = {run.name: str(run.folder) for run in runs}
    return {"runs": folders, "numbers": numbers, "rank_correlation": {"with": aim.key, "numbers": ranked}}
