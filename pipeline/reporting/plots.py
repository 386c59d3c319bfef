"""One plot a file: lines, or named points."""

from dataclasses import dataclass, field
from pathlib import Path

COLOURS = ("#2f5d8c", "#c2703d", "#4d8f63", "#8a5a9e", "#767d86")


@dataclass
class Series:
    """A line; with `names`, one a point, points without a line. Those in `hollow` are drawn as rings."""

    label: str
    across: list[float]
    down: list[float]
    names: list[str] = field(default_factory=list)
    hollow: list[bool] = field(default_factory=list)


@dataclass
class Plot:
    across: str  # what the horizontal axis shows
    down: str
    series: list[Series]
    log_across: bool = False
    log_down: bool = False


def draw_plot(plot: Plot, out: Path) -> None:
    """Write the plot to the PNG `out`, large enough for a screen and legible on a phone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and most commands draw nothing
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 2.9), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for series, colour in zip(plot.series, COLOURS):
        (_points if series.names else _line)(axis, series, colour)
    if plot.log_across:
        axis.set_xscale("log")
        _plain_numbers(axis.xaxis)
    if plot.log_down:
        axis.set_yscale("log")
        _plain_numbers(axis.yaxis)
    if len(plot.series) > 1:
        for text in axis.legend(fontsize=9, frameon=False).get_texts():
            text.set_parse_math(False)
    axis.set_xlabel(plot.across, fontsize=9.5, parse_math=False)  # a `$` in a name is no formula
    axis.set_ylabel(plot.down, fontsize=9.5, parse_math=False)
    axis.tick_params(which="both", labelsize=9)
    axis.margins(x=0.12 if any(series.names for series in plot.series) else 0.03, y=0.12)
    axis.grid(True, linewidth=0.3, alpha=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Software": None})


def _plain_numbers(log_axis) -> None:
    """0.2 and 200 in place of powers of ten; between them where there is less than a decade or so."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    log_axis.set_major_formatter("{x:g}")
    log_axis.set_minor_formatter(Plain(minor_thresholds=(1.5, 0.5)))


def _line(axis, series: Series, colour: str) -> None:
    marker = "o" if len(series.across) < 20 else ""
    axis.plot(
        series.across, series.down, color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=series.label
    )


def _points(axis, series: Series, colour: str) -> None:
    rings = series.hollow or [False] * len(series.names)
    faces = ["none" if ring else colour for ring in rings]
    look = {"s": 30, "facecolors": faces, "edgecolors": colour, "linewidths": 1.3}
    axis.scatter(series.across, series.down, label=series.label, **look)
    for name, *place in zip(series.names, series.across, series.down):
        axis.annotate(
            name, place, xytext=(0, 6), textcoords="offset points", fontsize=8.5, ha="center", parse_math=False
        )
