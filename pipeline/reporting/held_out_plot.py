"""The held-out loss of a training beside that of its training images, as a plot, and what is to be said of the two."""

from pathlib import Path

from pipeline.reporting.page import Picture
from pipeline.reporting.plots import Plot, Series, draw_plot
from pipeline.training.overfitting import find_overfitting, read_previews


def held_out_picture(section: str, title: str, folder: Path, out: Path) -> Picture | None:
    """The plot of a training's folder, drawn into the PNG `out`, for a page's `section`; None without two previews."""
    previews = read_previews(folder)
    series = []
    for label, name in (("held-out images", "held_out"), ("training images", "train")):
        known = [(one.step, getattr(one, name)) for one in previews if getattr(one, name) is not None]
        series.append(Series(label, [float(step) for step, _ in known], [value for _, value in known]))
    if min(len(one.across) for one in series) < 2:
        return None
    draw_plot(Plot("step", f"loss, {title}", series), out)
    found = find_overfitting(previews)
    said = "" if found is None else f" {found.describe(title)[:1].upper()}{found.describe(title)[1:]}."
    caption = f"{title}: the same weighted terms of held-out and of training images, by the average weights.{said}"
    return Picture(section, f"{caption[:1].upper()}{caption[1:]}", out, plot=True)
