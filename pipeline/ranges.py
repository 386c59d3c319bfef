"""Types of numbers with their ranges: what a recipe, a component and a call may state, said once, in the annotation.

`pipeline.components.conform` refuses what a recipe states outside of them; records and components that are made in
Python refuse it by `RangedFields` and `RangedArguments`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from numbers import Real
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pipeline.validation import Length, Range

Integer = Annotated[int, Range()]
Whole = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Evaluations = Annotated[int, Range(1, 10**6)]  # of a network, for one sample
ImageCount = Annotated[int, Range(1, 10**9)]
Seed = Annotated[int, Range(0, 10**18)]
Number = Annotated[float, Range()]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, open_low=True)]
Fraction = Annotated[float, Range(0, 1)]
FractionBelowOne = Annotated[float, Range(0, 1, open_high=True)]
FractionAboveZero = Annotated[float, Range(0, 1, open_low=True)]
InnerFraction = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
Counts = Annotated[list[Count], Length(1)]
ImageSize = Count | Annotated[list[Count], Length(2, 2)]  # pixels of a side of a square, or height and width
Colours = Annotated[list[Number], Length(3, 3)]  # a number for red, green and blue
ColourScales = Annotated[list[Positive], Length(3, 3)]
Layers = Annotated[list[Integer], Length(1)]  # of a network, from 0, or from -1 backwards


class RangedFields:
    """A base of records, which refuse values outside of the ranges that the types of their fields state."""

    def __post_init__(self) -> None:
        check_values(vars(self), type_hints(type(self)))


class RangedArguments:
    """A base of components, whose constructors refuse values outside of the ranges that their annotations state."""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)


def checked(function: Callable) -> Callable:
    """The function, which first refuses arguments outside of the ranges of its annotations."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        arguments = {name: value for name, value in named.items() if name in signature.parameters}
        check_values(signature.bind_partial(*values, **arguments).arguments, type_hints(function))
        return function(*values, **named)

    return call


@functools.cache
def type_hints(of: Any) -> dict[str, Any]:
    """The types of the fields of a record, or of the arguments of a function, with their ranges."""
    return get_type_hints(of, include_extras=True)


def check_values(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """SettingError for the first value that is outside of the range of its type."""
    for name, value in values.items():
        check_value(name, value, hints.get(name))


def check_value(name: str, value: Any, hint: Any) -> None:
    """SettingError where a number in `value` is outside of the range that the type `hint` states for it."""
    if value is None or not stated_ranges(hint):
        return
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        check_value(name, value, inner[0])
        for rule in hint.__metadata__:
            rule.check(name, value)
    elif origin in (Union, UnionType):
        others = [one for one in inner if one is not NoneType]
        fitting = [one for one in others if stated_ranges(one) and isinstance(value, classes_of(one))]
        for one in fitting or (others if len(others) == 1 else []):
            check_value(name, value, one)
    elif origin is dict and isinstance(value, Mapping):
        for key, entry in value.items():
            check_value(f"{name}.{key}", entry, inner[1])
    elif isinstance(value, (list, tuple)):
        fixed = origin is tuple and Ellipsis not in inner and len(inner) == len(value)
        for place, entry in enumerate(value):
            check_value(f"{name}[{place}]", entry, inner[place] if fixed else inner[0])


def classes_of(hint: Any) -> Any:
    """The class of the values of a type that states ranges: numbers of any kind, or its own."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return Real if hint in (int, float) else get_origin(hint) or hint


@functools.cache
def stated_ranges(hint: Any) -> bool:
    """Whether a type states a range of its own or of what it contains."""
    inner = [one for one in get_args(hint) if not isinstance(one, list)]  # the arguments of a Callable are a list
    return get_origin(hint) is Annotated or any(map(stated_ranges, inner))
