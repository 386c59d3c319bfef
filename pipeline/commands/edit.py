"""`edit RUN|FOLDER|HUB_ID image=FILE`: a picture made anew by a published pipeline."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Generator

from pipeline.components import structure
from pipeline.datasets.base import decode
from pipeline.files.paths import given_path
from pipeline.files.writing import new_file
from pipeline.latent_pipeline import LatentPipeline
from pipeline.ranges import Evaluations, FractionAboveZero, Number, RangedFields, Seed, Whole
from pipeline.recipes.arithmetic import Precision
from pipeline.recipes.files import parse_settings
from pipeline.runs.finished import find_pipeline
from pipeline.runs.machine import accelerate, check_precision
from pipeline.runs.precision import arithmetic
from pipeline.sampling.text_encoder import add_text_encoder


@dataclass
class EditSettings(RangedFields):
    """What `run.py edit` takes; what is None is as the pipeline says."""

    image: str  # file of the picture
    mask: str | None = None  # file of a mask, white where the picture is repainted; null: everywhere
    strength: FractionAboveZero | None = None  # 1 makes a new image; null: 0.8, and 1 with a mask
    mask_blur: Whole = 0  # pixels over which the edge of the mask fades
    label: Whole | str | None = None  # number or name of the class
    prompt: str | None = None  # a text, for a generator that reads such
    negative_prompt: str | None = None  # what guidance leads away from
    text_encoder: str | None = None  # its folder, where the pipeline has none; null: as the pipeline says
    seed: Seed = 0
    steps: Evaluations | None = None  # network evaluations
    guidance: Number | dict[str, Any] | None = None  # its scale, or what differs: guidance.interval=[0,0.8], ...
    sampler: dict[str, Any] = field(default_factory=dict)  # the objective's own settings
    precision: Precision = "fp32"
    variant: str | None = None  # of the weights
    out: str | None = None  # PNG file of the result; null: NAME-edited.png in the current folder


def edit(words: list[str]) -> None:
    """Make a picture anew, as a whole or where a mask is white, and write it to a new PNG file.

    A file that is there is never written over.
    """
    source, *overrides = words
    asked = structure(EditSettings, parse_settings(overrides))
    check_precision(asked.precision)
    out = new_png(asked.out or f"{Path(asked.image).stem}-edited.png")
    given = {name: read_picture(path, name) for name in ("image", "mask") if (path := getattr(asked, name)) is not None}
    accelerator = accelerate()
    if accelerator.num_processes > 1:
        raise ValueError("one picture is edited by one process; run it without torchrun")
    pipe = LatentPipeline.from_pretrained(find_pipeline(source), variant=asked.variant)
    add_text_encoder(pipe, asked.text_encoder)
    pipe.to(accelerator.device)
    if asked.label is None and pipe.num_classes:
        raise ValueError(f"this generator makes images of classes; state label=0 to {pipe.num_classes - 1}, or a name")
    pipe.set_progress_bar_config(desc="editing", unit="evaluation")
    guidance = asked.guidance if isinstance(asked.guidance, dict) else {"scale": asked.guidance}
    settings = asked.sampler | {f"guidance_{name}": value for name, value in guidance.items()}
    settings |= given | {"strength": asked.strength, "mask_blur": asked.mask_blur}
    settings |= {"prompt": asked.prompt, "negative_prompt": asked.negative_prompt}
    generator = Generator().manual_seed(asked.seed)
    with arithmetic(accelerator.device, asked.precision):
        image = pipe(asked.label, num_inference_steps=asked.steps, generator=generator, **settings).images[0]
    with new_file(out) as draft:
        image.save(draft)
    print(f"{out}: {image.width}x{image.height} pixels")


def new_png(path: str) -> Path:
    """The path of a file to write; ValueError where it is there, or no PNG file."""
    out = given_path(path)
    if out.suffix.lower() != ".png":
        raise ValueError(f"out={path} is no PNG file, which alone keeps every pixel; give it the ending .png")
    if out.exists():
        raise ValueError(f"{path} is there already; state another file by out=")
    return out


def read_picture(path: str, name: str) -> Any:
    """The picture in a file; ValueError where there is none that Pillow reads."""
    return decode(given_path(path), f"{name}={path}")
