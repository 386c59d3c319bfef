"""Errors that name the setting at fault, and one wording for every rule that values follow."""

import difflib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

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


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put `place` before every ValueError raised inside: `place: message`, and `place.inner: message` when nested."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"{place}.{error.place}", error.message) from None
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


def check_folder_name(place: str, name: str) -> None:
    """SettingError unless `name` is one folder's name on every system, and none that is hidden or means another one."""
    if not name.strip():
        wrong = "is empty"
    elif any(unicodedata.category(character)[0] == "C" for character in name):
        wrong = "holds a character that cannot be printed"
    elif found := [character for character in name if character in SEPARATORS]:
        wrong = f"holds {found[0]!r}"
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


def check_fraction(name: str, value: float, *, zero: bool = True, one: bool = True) -> None:
    """SettingError unless `value` is from 0 to 1; `zero` and `one` say whether the ends are allowed."""
    if (value >= 0 if zero else value > 0) and (value <= 1 if one else value < 1):
        return
    if zero and one:
        allowed = "from 0 to 1"
    else:
        allowed = f"{'0 or more' if zero else 'above 0'} and {'at most' if one else 'below'} 1"
    raise SettingError(name, f" is {value:g}; give a fraction, {allowed}")


def check_positive(name: str, value: float) -> None:
    """SettingError unless `value` is above 0."""
    if not value > 0:
        raise SettingError(name, f" is {value:g}; give a number above 0")


def check_at_least(name: str, value: float, least: float) -> None:
    """SettingError unless `value` is `least` or more."""
    if not value >= least:
        raise SettingError(name, f" is {value:g}; give {least:g} or more")
