"""The command `card`: all that is measured of a tokenizer alone, of a run's or of an imported folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipeline.captions.table import FOLDER, Captions
from pipeline.components import structure
from pipeline.features.passes import evenly_spaced
from pipeline.files.paths import given_path
from pipeline.files.writing import write_json, write_text
from pipeline.images import grids
from pipeline.images.facts import SPLITS, UsedImages
from pipeline.images.reading import Images
from pipeline.images.rendering import rendered
from pipeline.measuring.card import CardMeasuring
from pipeline.measuring.card_networks import CardNetworks, CardSettings
from pipeline.measuring.numbers import describe_left_out
from pipeline.metrics.base import TokenizerMetric, check_metrics, metric_kinds
from pipeline.nn.devices import device_name
from pipeline.nn.image_size import size_setting, size_text
from pipeline.program import command_line
from pipeline.recipes.data import Data
from pipeline.recipes.files import merge, parse_settings
from pipeline.recipes.schema import load
from pipeline.reporting.card_page import card_markdown, draw_card, write_card_page
from pipeline.reporting.run_page import refresh_report
from pipeline.runs.finished import CARD, run_folder, sha256_of_tokenizer, tokenizer_of
from pipeline.runs.machine import accelerate
from pipeline.runs.workspace import OWNER, Workspace, fingerprint
from pipeline.saved_folders import load_tokenizer_or_stock
from pipeline.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class CardTarget:
    """A tokenizer's folder, its name, the folder its card goes to, and the settings that its run determines."""

    name: str
    tokenizer: Path
    folder: Path
    judge: Path | None  # that of the run's report, so that distances can be compared
    settings: dict[str, Any]


def card(words: list[str]) -> None:
    """`run.py card RUN|FOLDER key=value ...`; prints where the card is."""
    target = find_target(words[0])
    settings = card_settings(target, words[1:])
    accelerator = accelerate()
    if accelerator.num_processes > 1:
        raise ValueError("a card is made by one process; run it without torchrun")
    out = given_path(settings.out) if settings.out else target.folder / "card"
    if out.exists() and any(out.iterdir()) and not (out / CARD).exists():
        raise ValueError(f"{out} exists and is not a card; set another out=FOLDER")
    work, images = Workspace(out.parent, accelerator), images_of_card(target, settings, accelerator)
    because = fingerprint(settings, images, sha256_of_tokenizer(target.tokenizer))
    if work.current(out.name, because):
        return print(f"card: {out} is up to date")
    with work.alone(out.name), work.publish(out.name, because, seed=settings.seed) as draft:
        make_card(target, settings, accelerator, draft)
    refresh_report(out.parent)
    print(f"card: {out / 'index.html'}")


def card_settings(target: CardTarget, overrides: list[str]) -> CardSettings:
    """The settings of the target's run with `key=value` overrides; ValueError where one is not right."""
    values = merge(target.settings, parse_settings(overrides))
    if "data" not in values:
        raise ValueError(f"{target.folder} does not say of which images; set data.source.kind=... and data.size=...")
    settings = structure(CardSettings, values)
    check_metrics(settings.metrics, metric_kinds(TokenizerMetric), "metrics")
    return settings


def images_of_card(target: CardTarget, settings: CardSettings, accelerator: Accelerator) -> dict[str, dict[str, Any]]:
    """The images of both splits; ValueError where they are those of the target's run, and have changed since."""
    notes = Workspace(target.folder, accelerator).history(("tokenizer", "latents", "report")).values()
    images, data_of_run, data = UsedImages(settings.data, ()), target.settings.get("data", {}), asdict(settings.data)
    same = all(data_of_run.get(name) == data[name] for name in ("source", "size", "channels", "depth", "resize"))
    if same and (change := images.change_since(notes)):
        raise ValueError(f"{change} since {target.folder} was made; type: {command_line('all', 'RECIPE')}")
    return images.of(SPLITS)


def captions_of(target: CardTarget, tokenizer: Tokenizer, data: Data, split: str) -> Captions | None:
    """The first captions of a split, for a tokenizer that reads them; ValueError where the target has none of these."""
    if not tokenizer.can.captions:
        return None
    folder, of_run = target.folder / FOLDER, target.settings.get("data", {}).get("source")
    if not folder.is_dir() or of_run != data.source:
        raise ValueError(
            f"the tokenizer of {target.name} reads captions, and their features are stored for a run's own images"
            " alone; give the run that trained it, and leave data.source out"
        )
    return Captions(folder, split, drawn=False)


def find_target(target: str) -> CardTarget:
    """The tokenizer of a run, or the one in a folder; ValueError where `target` is neither."""
    if (run := run_folder(target)) is not None:
        recipe = load(str(run / OWNER))
        known = {"data": asdict(recipe.data), "seed": recipe.seed, "weights": asdict(recipe.weights)}
        part = recipe.evaluate
        known |= {"images": part.images, "features": list(part.features), "resize": part.resize}
        judge = run / "report" / "judge"
        return CardTarget(recipe.name, tokenizer_of(run), run, judge if judge.is_dir() else None, known)
    folder = Path(target)
    if (folder / "config.json").is_file():
        return CardTarget(folder.resolve().name, folder, folder, None, {})
    raise ValueError(
        f"{target} is neither a run (a folder with {OWNER}, a name in runs/, a recipe that has been run) nor a"
        " tokenizer's folder (with config.json)"
    )


def make_card(target: CardTarget, settings: CardSettings, accelerator: Accelerator, out: Path) -> None:
    """Measure, and write `card.json`, `card.md`, `index.html` and what they show into the folder `out`."""
    data = settings.data
    tokenizer = load_tokenizer_or_stock(target.tokenizer, data.image_size, data.image_shape[0]).to(accelerator.device)
    train, held_out = (Images(data, split, captions_of(target, tokenizer, data, split)) for split in SPLITS)
    if not len(held_out):
        raise ValueError("a card measures held-out images, and there are none; set data.source.held_out=0.1")
    channels, *sides = tokenizer.image_shape
    if tuple(sides) != data.sides:
        size, given = size_text(sides), size_text(data.size)
        raise ValueError(
            f"the tokenizer is for images of {size} pixels, not {given}; set data.size={size_setting(sides)}"
        )
    if channels != data.image_shape[0]:
        raise ValueError(f"the tokenizer is for images of {channels} channels, not {data.channels}; set data.channels")
    networks = CardNetworks.load(settings, train, target.judge, accelerator.device, out / "judge")
    measuring = CardMeasuring(tokenizer, networks, settings, accelerator, out / "prior")
    about = describe(target, tokenizer, settings, accelerator) | {
        "scale": measuring.scale(train),
        "left_out": measuring.left_out(),
    }
    inputs = measuring.inputs(train, held_out)
    groups = measuring.numbers(inputs)
    about["left_out"] += describe_left_out(measuring.measuring.left_out)
    numbers = {group: {key: number.as_dict() for key, number in part.items()} for group, part in groups.items()}
    flat = {key: {"group": group} | number for group, part in numbers.items() for key, number in part.items()}
    curves = measuring.curves(inputs)
    content = {"about": about, "numbers": flat, "curves": curves}
    write_json(out / CARD, content, allow_nan=False)
    write_text(out / "card.md", card_markdown(about, numbers))
    save_reconstructions(measuring, held_out, out / "reconstructions.png")
    figures = draw_card(curves, out / "prior" / "metrics.jsonl", out)
    write_card_page(out / "index.html", about, numbers, figures)


def describe(
    target: CardTarget, tokenizer: Tokenizer, settings: CardSettings, accelerator: Accelerator
) -> dict[str, Any]:
    return {
        "name": target.name,
        "tokenizer": type(tokenizer).__name__,
        "folder": str(target.tokenizer),
        "sha256": sha256_of_tokenizer(target.tokenizer),
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
        "code": asdict(tokenizer.spec),
        "settings": asdict(settings),
        "device": device_name(accelerator.device),
    }


def save_reconstructions(measuring: CardMeasuring, held_out: Images, path: Path) -> None:
    count = min(len(held_out), grids.columns(held_out.data.sides))
    batch = held_out.plain(evenly_spaced(None, len(held_out), count)).to(measuring.device)
    code = measuring.encode(batch.images, batch.condition)
    reconstructions = rendered(measuring.tokenizer, code, batch.condition)
    grids.reconstructions(batch.images.cpu(), reconstructions.cpu()).save(path)
