"""A tokenizer's card as a page, as Markdown and as figures."""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from pipeline.files.writing import write_text
from pipeline.images.grids import AMPLIFIED
from pipeline.reporting.curves import read_log
from pipeline.reporting.markdown_text import markdown_text
from pipeline.reporting.number_text import format_number
from pipeline.reporting.page import (
    ARROWS,
    Picture,
    document,
    entry_html,
    headline_tiles,
    numbers_section,
    protocol_summary,
    section,
)
from pipeline.reporting.plots import Plot, Series, draw_plot

CAPTIONS = {  # of a figure, by the group of numbers that it goes with
    "Frequencies": "Power spectra of held-out images and of the residuals of their reconstructions.",
    "Stability": "Change of the code by noise on the image.",
    "Ids": "Entropy over the training images of the id at each position.",
    "How learnable": "Loss of the small prior during its training.",
}
Groups = dict[str, dict[str, dict[str, Any]]]  # numbers as card.json holds them, by group and key


def write_card_page(out: Path, about: dict[str, Any], numbers: Groups, figures: list[Picture]) -> None:
    """`about` and the numbers are those of card.json; pictures stand under the title of a group."""
    flat = {key: number for group in numbers.values() for key, number in group.items()}
    parts = [
        numbers_section(title, [p for p in figures if p.title == title], group)
        for title, group in numbers.items()
        if group
    ]
    facts = {name: value for name, value in about.items() if name != "settings"}
    settings = f"<details><summary>how it was measured</summary>{entry_html(about['settings'])}</details>"
    body = [
        f"<header><p class=kicker>Tessera tokenizer card</p><h1>{escape(about['name'])}</h1>"
        f"<p>{escape(summary(about))}</p></header>",
        headline_tiles(flat),
        *parts,
        section("Tokenizer", entry_html(facts) + settings),
        "<footer>All numbers in full, with their protocols, are in card.json beside this page.</footer>",
    ]
    write_text(out, document(f"{about['name']}, tokenizer card", body))


def card_section(card: dict[str, Any], folder: Path, leave_out: Iterable[str]) -> str:
    """A card as part of another page: figures and numbers by group, but for the numbers `leave_out`."""
    groups: Groups = {}
    for key, number in card["numbers"].items():
        if key not in leave_out:
            groups.setdefault(number["group"], {})[key] = number
    plots = [Picture(title, caption, folder / file_name(title), plot=True) for title, caption in CAPTIONS.items()]
    there = [picture for picture in plots if picture.path.is_file()]
    parts = [
        numbers_section(title, [picture for picture in there if picture.title == title], group, inner=True)
        for title, group in groups.items()
    ]
    return f"<p class=caption>{escape(summary(card['about']))}</p>{''.join(parts)}"


def summary(about: dict[str, Any]) -> str:
    code, data = about["code"], about["settings"]["data"]
    grid = " × ".join(map(str, code["grid"]))
    entries = f"ids of {code['vocab']:,}" if code["vocab"] else f"{code['dim']} channels"
    books = f"{code['codebooks']} " if code["codebooks"] > 1 else ""
    return (
        f"{about['tokenizer']}, {about['parameters']:,} parameters · {data['size']} × {data['size']} pixels to"
        f" {grid} tokens of {books}{entries} · images: {data['source']['kind'].replace('_', ' ')}"
    )


def card_markdown(about: dict[str, Any], numbers: Groups) -> str:
    """A table a group: number, value, direction, what it was measured on."""
    lines = [f"# {markdown_text(about['name'])}, tokenizer card", "", markdown_text(summary(about)), ""]
    for title, group in numbers.items():
        if not group:
            continue
        lines += [f"## {markdown_text(title)}", "", "| number | value | | measured on |", "|---|--:|---|---|"]
        for number in group.values():
            title, value = number["title"], format_number(number["value"], number["unit"])
            cells = map(
                markdown_text, (title, value, ARROWS.get(number["better"], ""), protocol_summary(number["protocol"]))
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, "All numbers in full, with their protocols, are in card.json.", ""])


def draw_card(curves: dict[str, Any], log: Path, out: Path) -> list[Picture]:
    """Draw what there is to draw into the folder `out`; `log` is that of the small prior's training."""
    plots = {
        "Frequencies": spectrum(curves),
        "Stability": stability(curves),
        "Ids": position_entropies(curves),
        "How learnable": prior_losses(log, curves),
    }
    amplified = f"Held-out images, their reconstructions, and the absolute difference times {AMPLIFIED}."
    pictures = [Picture("Reconstructions", amplified, out / "reconstructions.png", pixelated=True)]
    for title, plot in plots.items():
        if plot is not None:
            path = out / file_name(title)
            draw_plot(plot, path)
            pictures.append(Picture(title, CAPTIONS[title], path, plot=True))
    return pictures


def file_name(title: str) -> str:
    return f"{title.lower().replace(' ', '_')}.png"


def spectrum(curves: dict[str, Any]) -> Plot | None:
    """Without frequency 0, which is the mean colour and cannot be on a logarithmic axis."""
    if "power" not in curves:
        return None
    series = [
        Series(name, list(range(1, len(values))), values[1:])
        for name, values in (("images", curves["power"]), ("residual", curves["residual"]))
    ]
    positive = all(value > 0 for line in series for value in line.down)
    return Plot("cycles per image", "power", series, log_down=positive)


def stability(curves: dict[str, Any]) -> Plot | None:
    names = {"changed": "ids changed", "cosine": "code cosine"}
    series = [
        Series(label, [float(db) for db in curves[name]], list(curves[name].values()))
        for name, label in names.items()
        if curves.get(name)
    ]
    return Plot("image over noise, dB", " · ".join(line.label for line in series), series) if series else None


def position_entropies(curves: dict[str, Any]) -> Plot | None:
    if "position_entropy" not in curves:
        return None
    books = list(zip(*curves["position_entropy"]))
    series = [Series(f"codebook {i}", list(range(len(values))), list(values)) for i, values in enumerate(books)]
    return Plot("position", "bits", series)


def prior_losses(log: Path, curves: dict[str, Any]) -> Plot | None:
    """The loss of the small prior on what it is trained on, by its log, and on held-out codes, where there is one."""
    if "prior" not in curves:
        return None
    (terms,) = (line for name, line in read_log(log).items() if name in ("network/next_token", "network/flow"))
    course = [int(step) for step in curves["prior"]], list(curves["prior"].values())
    return Plot("step", "loss", [Series("training codes", *terms), Series("held-out codes", *course)])
