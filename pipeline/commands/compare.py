"""The command `compare`: finished runs side by side, in numbers and figures."""

from dataclasses import dataclass

from pipeline.components import structure
from pipeline.files.paths import given_path
from pipeline.measuring.comparison import choose_aim, compare_numbers, correlations, read_runs
from pipeline.recipes.files import is_setting, parse_settings
from pipeline.reporting.comparison_page import write_comparison


@dataclass
class ComparisonSettings:
    """What `run.py compare` takes beside the runs."""

    out: str = "comparison"  # folder
    by: str | None = None  # the number that others are correlated with; null: the distance that most runs have


def compare(words: list[str]) -> None:
    """`run.py compare RUN RUN ... out=DIR by=KEY`; prints where the comparison is."""
    settings = structure(ComparisonSettings, parse_settings(filter(is_setting, words)))
    runs = read_runs([word for word in words if not is_setting(word)])
    numbers = compare_numbers(runs)
    aim = numbers[choose_aim(numbers, settings.by)]
    out = given_path(settings.out)
    if out.exists() and any(out.iterdir()) and not (out / "comparison.json").exists():
        raise ValueError(f"{out} exists and is not a comparison; set another out=FOLDER")
    out.mkdir(parents=True, exist_ok=True)
    write_comparison(out, runs, list(numbers.values()), aim, correlations(numbers, aim))
    print(f"compare: {out / 'index.html'}")
