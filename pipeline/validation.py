"""Errors that name the setting at fault, and one wording for every rule that values follow."""

import difflib
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

PLACE = "<place>"  # in the message of a SettingError: the whole name of its setting, known once that is

SEPARATORS = '/\\:*?"<>|'  # on one system or another
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}  # of Windows
LONGEST = 200  # bytes: file systems allow 255, and drafts of a folder have longer names


class SettingError(ValueError):
    """A setting that is wrong: `place` is its name (`data.size`), `message` what follows the name.

    The message begins with its own separator: `: there is no such setting`, ` is missing`.
    """

    def __init__(self, place: str, message: str):
        super().__init__(place, message)
        self.place, self.message = place, message

    def __str__(self) -> str:
        return f"{self.place}{self.message.replace(PLACE, self.place)}"


class NotHere(SettingError):
    """A folder or file that a setting names is not on this machine yet; every other fault of it is another error."""


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put `place` before every ValueError raised inside: `place: message`, and `place.inner: message` when nested."""
    try:
        yield
    except SettingError as error:
        raise type(error)(f"{place}.{error.place}", error.message) from None
    except ValueError as error:
        raise SettingError(place, f": {error}") from None


def suggestion(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'steps'?` when a known name is near, else the list of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known) or 'none'}"


def check_known(name: str, known: Iterable[str], what: str) -> None:
    """ValueError unless `name` is one of the `known` names of `what`."""
    known = list(known)
    if name not in known:
        raise ValueError(f"there is no {what} {name!r}{suggestion(name, known)}")


def check_names(given: Iterable[str], needed: Iterable[str], what: str) -> None:
    """SettingError unless `given` names exactly what is `needed`; each name stands for a `what`."""
    given, needed = list(given), sorted(needed)
    for name in given:
        if name not in needed:
            raise SettingError(
                name, f": there is no {what} {name!r}{suggestion(name, needed)}; {PLACE}=null leaves it out"
            )
    for name in needed:
        if name not in given:
            raise SettingError(name, f" is missing: every {what} needs a value; set {PLACE}=VALUE")


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have; the ends belong to it unless they are open. nan and inf never do."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __str__(self) -> str:
        """What is allowed, as messages and listings say it: `1 or more`, `a fraction, 0 or more and below 1`."""
        if math.isinf(self.low) and math.isinf(self.high):
            return "a finite number"
        if math.isinf(self.high):
            return f"a number above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        kind = "a fraction, " if (self.low, self.high) == (0, 1) else "a number "
        if not self.open_low and not self.open_high:
            return f"{kind}from {self.low:g} to {self.high:g}"
        low = f"above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        return f"{kind}{low} and {'below' if self.open_high else 'at most'} {self.high:g}"

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def check(self, name: str, value: float) -> None:
        """SettingError unless `value` is a number of this range."""
        check_number(name, value)
        if value not in self:
            raise SettingError(name, f" is {value:g}; give {self}")
        check_finite_number(name, value)


@dataclass(frozen=True)
class Length:
    """How many entries a list may have."""

    least: int
    most: int | None = None

    def __str__(self) -> str:
        if self.most is None:
            return f"{self.least} {'entry' if self.least == 1 else 'entries'} or more"
        return f"{self.least} entries" if self.most == self.least else f"{self.least} to {self.most} entries"

    def check(self, name: str, value: Sized) -> None:
        """SettingError unless `value` has so many entries."""
        if len(value) < self.least or self.most is not None and len(value) > self.most:
            raise SettingError(name, f" has {len(value) or 'no'} entries; give {self}")


def check_number(name: str, value: Any) -> None:
    """SettingError for what is no number, and for a whole one of more than 63 bits."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise SettingError(name, f": {value!r} is not a number")
    if isinstance(value, int) and value.bit_length() > 63:
        raise SettingError(name, " has more than 18 digits; give a smaller number")


def check_finite_number(name: str, value: float) -> None:
    """SettingError for nan, inf, and what `check_number` refuses."""
    check_number(name, value)
    if not math.isfinite(value):
        raise SettingError(name, f" is {value}; give a finite number")


def check_folder_name(place: str, name: str) -> None:
    """SettingError unless `name` is one folder's name on every system, and none that is hidden or means another one."""
    if not name.strip():
        wrong = "is empty"
    elif any(unicodedata.category(character)[0] == "C" for character in name):
        wrong = "holds a character that cannot be printed"
    elif separators := [character for character in name if character in SEPARATORS]:
        wrong = f"holds {separators[0]!r}"
    elif name[0] in ".- " or name[-1] in ". ":
        wrong = "begins or ends with a dot, a dash or a space"
    elif len(name.encode()) > LONGEST:
        wrong = f"is longer than {LONGEST} bytes"
    elif name.split(".")[0].lower() in RESERVED:
        wrong = "is reserved on some systems"
    else:
        return
    shown = name if len(name) <= 40 else f"{name[:40]}..."
    raise SettingError(place, f": {shown!r} {wrong}, so it is no folder's name; give letters, digits, - and _")


def check_numbers(name: str, value: Any) -> None:
    """SettingError for a number in `value`, of whatever type, that `check_finite_number` refuses."""
    if isinstance(value, Mapping):
        for inner, entry in value.items():
            check_numbers(f"{name}.{inner}", entry)
    elif isinstance(value, (list, tuple)):
        for place, entry in enumerate(value):
            check_numbers(f"{name}[{place}]", entry)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        check_finite_number(name, value)


def check_fraction(name: str, value: float, *, zero: bool = True, one: bool = True) -> None:
    """SettingError unless `value` is from 0 to 1; `zero` and `one` say whether the ends are allowed."""
    Range(0, 1, open_low=not zero, open_high=not one).check(name, value)


def check_positive(name: str, value: float) -> None:
    """SettingError unless `value` is above 0."""
    Range(0, open_low=True).check(name, value)


def check_at_least(name: str, value: float, least: float) -> None:
    """SettingError unless `value` is `least` or more."""
    Range(least).check(name, value)
