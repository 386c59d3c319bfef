"""Every number of a recipe and of a component has a range, and is refused outside of it by name, in one line."""

import inspect
import math
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest

from pipeline.call_arguments import Defaults
from pipeline.commands.reference import FolderSettings as ReferenceSettings
from pipeline.commands.sweep import SweepSettings
from pipeline.components import SLOTS, classes_of, conform
from pipeline.measuring.card_networks import CardSettings
from pipeline.ranges import Count, Fraction, RangedFields, checked, type_hints
from pipeline.recipes.describing import records_of, sections_of
from pipeline.recipes.loops import Loop
from pipeline.recipes.schema import Recipe, load
from pipeline.sampling.from_folder import FolderSettings
from pipeline.validation import Range

BAD = (math.nan, math.inf, -math.inf, -1, 0, 10**400)


def constructed() -> dict[str, type]:
    """The classes whose constructors recipes state arguments for, by slot and kind."""
    classes = [(slot, cls) for slot in SLOTS for cls in classes_of(slot)]
    choices = [of for _, cls in classes for named in getattr(cls, "choices", {}).values() for of in named.values()]
    classes += [("choices", cls) for cls in dict.fromkeys(choices)]
    return {f"{slot}.{cls.__name__}": cls for slot, cls in classes if not is_dataclass(cls) and slot != "teachers"}


def records() -> dict[str, type]:
    """The records of settings: those of recipes, calls and commands, of constructors, samplers and solvers."""
    found = [Recipe, *(cls for _, cls in sections_of(Recipe)), *filter(is_dataclass, classes_of("solvers"))]
    found += [objective.settings for objective in classes_of("objectives")]
    found += [record for cls in constructed().values() for record in records_of(cls.__init__)]
    found += [FolderSettings, ReferenceSettings, SweepSettings, CardSettings, Defaults]
    return {cls.__name__ + str(number): cls for number, cls in enumerate(dict.fromkeys(found))}


def numbers(hint: Any) -> Iterator[tuple[type, Range | None, Any]]:
    """The types of numbers in a type, each with its range, if it has one, and a function from a number to a value."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (int, float):
        yield hint, None, lambda number: number
    elif origin is Annotated and inner[0] in (int, float):
        yield inner[0], inner[1], lambda number: number
    elif origin is Annotated:
        for of, allowed, make in numbers(inner[0]):
            yield of, allowed, lambda number, make=make, count=inner[1].least: make(number) * count
    elif origin in (Union, UnionType):
        for one in inner:
            yield from numbers(one)
    elif origin is dict:
        yield from (
            (of, allowed, lambda number, make=make: {"a": make(number)}) for of, allowed, make in numbers(inner[1])
        )
    elif origin in (list, tuple):
        count = len(inner) if Ellipsis not in inner else 1
        for of, allowed, make in numbers(inner[0]):
            yield of, allowed, lambda number, make=make: [make(number)] * count


def arguments_of(cls: type) -> Iterator[tuple[str, Any]]:
    hints = type_hints(cls if is_dataclass(cls) else cls.__init__)
    names = [name for name in inspect.signature(cls).parameters if name != "maps"]  # which a tokenizer determines
    return ((name, hint) for name, hint in hints.items() if name in names)


ALL = records() | constructed()


@pytest.mark.parametrize("name", ALL)
def test_every_number_states_a_range_and_is_refused_outside_of_it(name):
    for argument, hint in arguments_of(ALL[name]):
        for of, allowed, make in numbers(hint):
            assert allowed is not None, f"{name}.{argument} has no range: give it a type of pipeline.ranges"
            for bad in BAD:
                inside = abs(bad) < 2**63 and bad in allowed
                if inside:
                    conform(make(of(bad)), hint, "section.here")
                    continue
                with pytest.raises(ValueError, match=r"^section\.here[\w.\[\]]* (is|has) .*; give ") as error:
                    conform(make(bad), hint, "section.here")
                assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", constructed())
def test_constructors_refuse_what_recipes_may_not_state(name):
    cls = constructed()[name]
    for argument, hint in arguments_of(cls):
        for _, allowed, make in numbers(hint):
            for bad in BAD:
                if abs(bad) >= 2**63 or bad not in allowed:
                    with pytest.raises(ValueError, match=f"^{argument}.* (is|has) .*; give "):
                        cls(**{argument: make(bad)})


def test_records_refuse_it_also_where_python_makes_them():
    for cls in records().values():
        assert issubclass(cls, RangedFields) or not any(True for _, hint in arguments_of(cls) for _ in numbers(hint))
    with pytest.raises(ValueError, match="^clip is -1; give 0 or more$"):
        Loop(steps=1, lr={}, clip=-1.0)
    with pytest.raises(ValueError, match="^lr.network is -0.5; give 0 or more$"):
        Loop(steps=1, lr={"network": -0.5})


def test_a_function_with_ranges_is_otherwise_as_it_was():
    @checked
    def area(width: Count, share: Fraction | Literal["all"] = 1.0, **more: int) -> float:
        """Of a rectangle."""
        return width * (1 if share == "all" else share) + sum(more.values())

    assert area(2) == 2 and area(2, share="all", more=1) == 3 and area.__doc__ == "Of a rectangle."
    for call in (lambda: area(0), lambda: area(2, 1.5), lambda: area("2"), lambda: area(True)):
        with pytest.raises(ValueError):
            call()
    with pytest.raises(TypeError):
        area()


STATED = {
    "generator.loop.lr.network={peak: 1e-3, first: 1.5}": "generator.loop.lr.network.first is 1.5; give a fraction",
    "generator.loop.accumulate=3": "generator.loop.accumulate is 3, which does not divide the batch of 64",
    "generator.loop.lr.network=-1e-3": "generator.loop.lr.network is -0.001; give 0 or more",
    "generator.loop.steps=1e30": "generator.loop.steps has more than 18 digits",
    "sample.guidance={scale: 2, interval: [0.8,0.2]}": r"sample.guidance.interval is \[0.8, 0.2\]; give the lower",
    "sample.guidance=.nan": "sample.guidance.scale is nan; give a finite number",
    "sample.sampler.solver=.inf": "sample.sampler.solver is inf; give a finite number",
    "evaluate.features=[]": "evaluate.features has no entries; give 1 entry or more",
    "tokenizer.model.bottleneck.dim=.nan": "tokenizer.model.bottleneck.dim is nan",
    "seed=-1": "seed is -1; give a number from 0 to 1e",
}


@pytest.mark.parametrize("override", STATED)
def test_a_recipe_is_refused_when_it_is_loaded(override):
    with pytest.raises(ValueError, match=f"^{STATED[override]}"):
        load("digits", [override])
