"""A tokenizer's card: all that is measured of a tokenizer alone, of a run's or of an imported folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipeline.components import structure
from pipeline.images.reading import Images
from pipeline.images.rendering import rendered
from pipeline.measuring.card_measuring import Measuring
from pipeline.measuring.card_sight import CardSettings, Sight
from pipeline.measuring.evaluation import even
from pipeline.measuring.throughput import device_name
from pipeline.publishing.tokenizer_folder import load_any
from pipeline.recipes.files import merge, parse
from pipeline.recipes.schema import load
from pipeline.reporting import pictures
from pipeline.reporting.card_page import card_markdown, draw_card, write_card_page
from pipeline.reporting.run_page import refresh_report
from pipeline.runs.finished import CARD, run_folder, sha256_of_tokenizer, tokenizer_of
from pipeline.runs.machine import accelerate
from pipeline.runs.workspace import OWNER, Workspace, fingerprint
from pipeline.tokenizers.base import Tokenizer


@dataclass
class Subject:
    """A tokenizer's folder, what it is called, where its card goes, and what of the settings is known."""

    name: str
    tokenizer: Path
    folder: Path
    judge: Path | None  # the one of the run's report, so that distances can be compared
    settings: dict[str, Any]


def card_from_command_line(words: list[str]) -> None:
    """`run.py card RUN|FOLDER key=value ...`; says where the card is."""
    target, *overrides = words
    subject = find_subject(target)
    stated = subject.settings
    for override in overrides:
        stated = merge(stated, parse(override))
    if "data" not in stated:
        raise ValueError(f"{target} does not say of which images; state data.source.kind=... and data.size=...")
    settings, accelerator = structure(CardSettings, stated), accelerate("fp32")
    if accelerator.num_processes > 1:
        raise ValueError("a card is made by one process; run it without torchrun")
    out = Path(settings.out) if settings.out else subject.folder / "card"
    if out.exists() and any(out.iterdir()) and not (out / CARD).exists():
        raise ValueError(f"{out} is there and is not a card; state another out=FOLDER")
    work, because = Workspace(out.parent, accelerator), fingerprint(settings, sha256_of_tokenizer(subject.tokenizer))
    if work.current(out.name, because):
        return print(f"card: {out} is up to date")
    with work.publish(out.name, because, seed=settings.seed) as draft:
        make_card(subject, settings, accelerator, draft)
    refresh_report(out.parent)
    print(f"card: {out / 'index.html'}")


def find_subject(target: str) -> Subject:
    """The tokenizer of a run, or the one in a folder; ValueError where `target` is neither."""
    if (run := run_folder(target)) is not None:
        recipe = load(str(run / OWNER))
        known = {"data": asdict(recipe.data), "seed": recipe.seed, "weights": recipe.weights}
        part = recipe.evaluate
        known |= {"images": part.images, "features": list(part.features), "resize": part.resize}
        judge = run / "report" / "judge"
        return Subject(recipe.name, tokenizer_of(run), run, judge if judge.is_dir() else None, known)
    folder = Path(target)
    if (folder / "config.json").is_file():
        return Subject(folder.resolve().name, folder, folder, None, {})
    raise ValueError(
        f"{target} is neither a run (a folder with {OWNER}, a name in runs/, a recipe that has been run) nor a"
        " tokenizer's folder (with config.json)"
    )


def make_card(subject: Subject, settings: CardSettings, accelerator: Accelerator, out: Path) -> None:
    """Measure, and write `card.json`, `card.md`, `index.html` and what they show into the folder `out`."""
    train, held_out = Images(settings.data, "train"), Images(settings.data, "held_out")
    if not len(held_out):
        raise ValueError("a card measures held-out images, and there are none; set data.source.held_out=0.1")
    tokenizer = load_any(subject.tokenizer, settings.data.size).to(accelerator.device)
    if (size := tokenizer.config.image_size) != settings.data.size:
        raise ValueError(
            f"the tokenizer is for images of {size} pixels, not {settings.data.size}; set data.size={size}"
        )
    sight = Sight.of(settings, train, subject.judge, accelerator.device, out / "judge")
    measuring = Measuring(tokenizer, sight, settings, accelerator)
    about = describe(subject, tokenizer, settings, accelerator) | {
        "scale": measuring.scale(train),
        "left_out": measuring.left_out(),
    }
    old, new = measuring.codes(train), measuring.everything(held_out)
    groups = measuring.numbers(old, new, train, held_out, out)
    numbers = {title: {key: number.plain() for key, number in part} for title, part in groups.items()}
    flat = {key: {"group": group} | number for group, part in numbers.items() for key, number in part.items()}
    curves = measuring.curves(old, new)
    content = {"about": about, "numbers": flat, "curves": curves}
    (out / CARD).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    (out / "card.md").write_text(card_markdown(about, numbers))
    save_reconstructions(measuring, held_out, out / "reconstructions.png")
    shown = draw_card(curves, out / "prior" / "metrics.jsonl", out)
    write_card_page(out / "index.html", about, numbers, shown)


def describe(
    subject: Subject, tokenizer: Tokenizer, settings: CardSettings, accelerator: Accelerator
) -> dict[str, Any]:
    return {
        "name": subject.name,
        "tokenizer": type(tokenizer).__name__,
        "folder": str(subject.tokenizer),
        "sha256": sha256_of_tokenizer(subject.tokenizer),
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
        "code": asdict(tokenizer.spec),
        "settings": asdict(settings),
        "device": device_name(accelerator.device),
    }


def save_reconstructions(measuring: Measuring, held_out: Images, path: Path) -> None:
    count = min(len(held_out), pictures.columns(held_out.data.size))
    images = held_out.plain(even(None, len(held_out), count)).images
    again = rendered(measuring.tokenizer, measuring.encode(images.to(measuring.device)))
    pictures.reconstructions(images, again.cpu()).save(path)
