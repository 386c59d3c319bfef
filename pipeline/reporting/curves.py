"""Training logs as small panels, one a term."""

import math
from collections.abc import Mapping
from pathlib import Path

from pipeline.training.journal import logged_lines

COLUMNS = 3
SMOOTH = 200  # logged lines beyond which a running mean is drawn over the values
NOT_TERMS = ("step", "wait", "rate")


def read_log(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values by name of a metrics.jsonl; a name need not be on every line."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for values in logged_lines(path):
        for name, value in values.items():
            if name not in NOT_TERMS:
                steps, numbers = series.setdefault(name, ([], []))
                steps.append(values["step"])
                numbers.append(math.nan if value is None else value)
    return series


def draw_curves(logs: Mapping[str, Path], out: Path) -> bool:
    """Draw every term of every training, by its name, into the PNG `out`; False when there is no log to draw."""
    panels = [(f"{title} · {name}", *points) for title, path in logs.items() for name, points in read_log(path).items()]
    if not panels:
        return False
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,
    )  # matplotlib is slow to import, and no other stage needs it
    from matplotlib.figure import Figure

    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.3 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axis, (title, steps, values) in zip(axes, panels):
        _panel(axis, title, steps, values)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(out, metadata={"Software": None})
    return True


def _panel(axis, title: str, steps: list[int], values: list[float]) -> None:
    crowded = len(values) > SMOOTH
    axis.plot(steps, values, color="#2f5d8c", linewidth=0.8 if crowded else 1.4, alpha=0.35 if crowded else 1)
    if crowded:
        window = len(values) // 50
        means = [sum(values[i : i + window]) / window for i in range(len(values) - window + 1)]
        axis.plot(steps[window - 1 :], means, color="#2f5d8c", linewidth=1.4)
    known = [value for value in values if math.isfinite(value)]
    if known and min(known) > 0 and max(known) > 10 * min(known):
        axis.set_yscale("log")
    axis.set_title(title, fontsize=9, loc="left", parse_math=False)
    axis.tick_params(labelsize=7)
    axis.grid(True, linewidth=0.3, alpha=0.6)
    axis.spines[["top", "right"]].set_visible(False)
