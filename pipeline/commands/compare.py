"""The command `compare`: finished runs side by side, in numbers and figures."""

from pathlib import Path

from pipeline.measuring.comparison import choose_aim, compare_numbers, correlations, read_runs
from pipeline.recipes.files import parse
from pipeline.reporting.comparison_page import write_comparison

OUT = Path("comparison")


def compare(words: list[str]) -> None:
    """`run.py compare RUN RUN ... out=DIR by=KEY`; prints where the comparison is."""
    settings = {key: value for text in words if "=" in text for key, value in parse(text).items()}
    if unknown := sorted(set(settings) - {"out", "by"}):
        raise ValueError(f"compare has no setting {unknown[0]!r}; there are: out, by")
    runs = read_runs([text for text in words if "=" not in text])
    numbers = compare_numbers(runs)
    aim = numbers[choose_aim(numbers, settings.get("by"))]
    out = Path(settings.get("out", OUT))
    if out.exists() and any(out.iterdir()) and not (out / "comparison.json").exists():
        raise ValueError(f"{out} exists and is not a comparison; set another out=FOLDER")
    out.mkdir(parents=True, exist_ok=True)
    write_comparison(out, runs, list(numbers.values()), aim, correlations(numbers, aim))
    print(f"compare: {out / 'index.html'}")
