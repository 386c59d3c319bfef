"""What a caller asks of a pipeline, made plain: labels, counts, guidance, sampler settings and the starting noise."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Generator, Tensor

from pipeline.code import LatentSpec
from pipeline.components import conform, plain_value, structure
from pipeline.draws import Draws, GivenDraws, ImageDraws
from pipeline.ranges import Evaluations, RangedFields
from pipeline.samplers.guidance import Guidance
from pipeline.validation import suggestion

ClassLabels = int | str | Sequence[int | str] | Tensor | None
NUMBER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class Defaults(RangedFields):
    """How a pipeline samples when a call does not say; saved in model_index.json as `sampling`."""

    steps: Evaluations | None = None  # network evaluations; None: as many as the objective says
    guidance: Guidance = Guidance()
    sampler: dict[str, Any] = field(default_factory=dict)  # the objective's own settings
    weak: str | None = None  # where the pipeline's weak network, if it has one, comes from


def find_labels(
    asked: ClassLabels, num_images: int | None, id2label: dict[int, str], num_classes: int
) -> list[int] | None:
    """Labels of the classes asked for by number or name, one per image; None for an unconditional network.

    Numbers of numpy and torch, arrays and ranges of them are taken, too. ValueError for what is no label or name.
    """
    if not num_classes:
        if asked is not None:
            raise ValueError("this generator is unconditional; leave class_labels out and set num_images")
        return None
    if asked is None:
        raise ValueError(f"this generator needs class_labels: 0 to {num_classes - 1}, or names of id2label")
    asked = plain_value(asked)
    if not isinstance(asked, (list, tuple)):
        asked = [asked] * (1 if num_images is None else check_count("num_images", num_images))
    if not asked or num_images not in (None, len(asked)):
        raise ValueError(f"there are {len(asked)} class_labels for num_images={num_images}; give one per image")
    return [find_label(plain_value(one), id2label, num_classes) for one in asked]


def find_label(asked: int | str, id2label: dict[int, str], num_classes: int) -> int:
    """The label of a class asked for by number or by name.

    A text is looked for as the whole name of a class, then as one of the synonyms in a name, which commas set apart,
    then as the beginning of one class's name alone, then as a number. Forms of Unicode do not matter. Raises ValueError
    for a label out of range, an unknown name, and a name that several classes have.
    """
    if isinstance(asked, str):
        named = classes_called(asked, id2label)
        if len(named) == 1:
            asked = named[0]
        elif not NUMBER.fullmatch(asked.strip()):
            if named:
                raise ValueError(f"several classes are called {asked!r}: {', '.join(map(str, named))}; give the number")
            raise ValueError(f"there is no class called {asked!r}{suggestion(asked, list(id2label.values()))}")
        else:
            asked = int(asked)
    if isinstance(asked, bool) or not isinstance(asked, int):
        raise ValueError(f"class_labels: {asked!r} is neither a label nor a class name")
    if not 0 <= asked < num_classes:
        raise ValueError(f"label {asked} is out of range; there are {num_classes} classes, 0 to {num_classes - 1}")
    return asked


def classes_called(asked: str, id2label: Mapping[int, str]) -> list[int]:
    """The classes of this whole name, else of this synonym, else those whose name begins so."""
    asked, names = one_form(asked), {label: one_form(name) for label, name in id2label.items()}
    rules = (
        lambda name: name == asked,
        lambda name: asked in map(str.strip, name.split(",")),
        lambda name: bool(asked) and name.startswith(asked),
    )
    matches = ([label for label, name in names.items() if rule(name)] for rule in rules)
    return next(filter(None, matches), [])


def one_form(text: str) -> str:
    """Composed characters where there are such: file systems write the same name in several forms."""
    return unicodedata.normalize("NFC", text)


def check_count(name: str, value: int) -> int:
    """A whole number of 1 or more; ValueError for anything else."""
    value = conform(value, int, name)
    if value < 1:
        raise ValueError(f"{name} is {value}; ask for at least 1")
    return value


def repeat_labels(labels: list[int] | None, each: int) -> list[int] | None:
    """Every label `each` times in a row: [3, 7] twice is [3, 3, 7, 7]."""
    each = check_count("num_images_per_label", each)
    if labels is None and each != 1:
        raise ValueError("this generator is unconditional; set num_images in place of num_images_per_label")
    return None if labels is None else [label for label in labels for _ in range(each)]


def count_images(
    labels: list[int] | None,
    num_images: int | None,
    generator: Generator | Sequence[Generator] | None,
    latents: Tensor | None,
) -> int:
    """How many images a call makes: as many as labels, else as asked for or as there are generators or latents."""
    if labels is not None:
        return len(labels)
    if num_images is None:
        num_images = len(generator) if isinstance(generator, (list, tuple)) else 1 if latents is None else len(latents)
    return check_count("num_images", num_images)


def resolve_guidance(default: Guidance, given: Mapping[str, Any]) -> Guidance:
    """The guidance given over the default one; values that are None are as the default says."""
    given = {name: value for name, value in given.items() if value is not None}
    return structure(Guidance, asdict(default) | given, "guidance")


def read_latents(given: Any) -> Tensor | None:
    """The noise that a call starts from as a tensor of finite numbers, given as one or as an array; else ValueError."""
    if given is None:
        return None
    if isinstance(given, np.ndarray) and given.dtype.kind == "f":
        given = torch.tensor(given)
    kind = f"{type(given).__name__} of {given.dtype}" if hasattr(given, "dtype") else f"{type(given).__name__}"
    if not isinstance(given, Tensor) or not given.is_floating_point() or not given.ndim:
        raise ValueError(f"latents are a {kind}; give a tensor of floating-point numbers, an image a row")
    if not given.isfinite().all():
        raise ValueError("latents hold numbers that are not finite")
    return given


def read_generators(given: Any, count: int) -> list[Generator]:
    """A generator for each of `count` images: those given, the one given for all, or of seeds of torch's global one.

    ValueError for what is no generator, and for another number of them.
    """
    if given is None:
        given = [Generator().manual_seed(seed) for seed in torch.randint(2**62, (count,)).tolist()]
    generators = [given] * count if isinstance(given, Generator) else given
    if not isinstance(generators, (list, tuple)) or not all(isinstance(one, Generator) for one in generators):
        raise ValueError(f"generator is {given!r}; give a torch.Generator, or a list of one per image")
    if len(generators) != count:
        raise ValueError(f"there are {len(generators)} generators for {count} images; give one per image, or one")
    return list(generators)


def starting_noise(latents: Tensor, count: int, spec: LatentSpec) -> Tensor:
    """Noise to start from as [B, N, C] float32, given so or as a feature map [B, C, H, W]."""
    if latents.ndim == 4 and tuple(latents.shape[1:]) == (spec.dim, *spec.grid):
        latents = latents.flatten(2).transpose(1, 2)
    if tuple(latents.shape) != (count, *spec.shape):
        maps = f" or {[count, spec.dim, *spec.grid]}" if len(spec.grid) == 2 else ""
        raise ValueError(f"latents are {list(latents.shape)}; {count} images need {[count, *spec.shape]}{maps}")
    return latents.float()


def draws_of_call(
    count: int,
    generator: Generator | Sequence[Generator] | None,
    latents: Tensor | None,
    spec: LatentSpec,
    device: torch.device,
) -> Draws:
    """The draws of `count` images: one generator per image, or one for all; without any, seeds of torch's global one.

    `latents` take the place of the noise to start from. Raises ValueError where these do not fit the images.
    """
    draws = ImageDraws(read_generators(generator, count), device)
    if latents is None:
        return draws
    if spec.vocab:
        raise ValueError("latents are the noise that continuous codes start from; this generator makes ids")
    return GivenDraws({"start": starting_noise(latents, count, spec).to(device)}, draws)


def shared_arguments(pipeline: DiffusionPipeline, given: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Constructor arguments `names` of a pipeline that shares the components and settings of another.

    Those `given` take the place of the other's. Raises ValueError for an unknown one, and when a component is missing.
    """
    for name in given:
        if name not in names:
            raise ValueError(f"{name}: a LatentPipeline has no such part{suggestion(name, list(names))}")
    settings = {
        name: pipeline.config[name] for name in ("id2label", "sampling", "depth", "text") if name in pipeline.config
    }
    shared = {name: component for name, component in pipeline.components.items() if name in names}
    arguments = {**shared, **settings, **given}
    for name in ("tokenizer", "network", "objective"):
        if arguments.get(name) is None:
            raise ValueError(f"a {type(pipeline).__name__} has no {name}; give {name}=... to from_pipe")
    return arguments
