"""Columns of a table of images as classes and attributes."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

YES_OR_NO = "an attribute is true or false, 1 or 0, or 1 or -1"
log = logging.getLogger(__name__)


class Classes:
    """The classes of a label column: its names, or the values that its images have, in order."""

    def __init__(self, feature: Any, values: Sequence[Any], path: str):
        there, self.path = sorted(set(values)), path
        names = getattr(feature, "names", None)
        if names:
            if strange := [value for value in there if not 0 <= value < len(names)]:
                where = f"row {values.index(strange[0])} of {path}"
                raise ValueError(
                    f"data.source.label: {where} has the label {strange[0]}, none of the {len(names)} classes; leave"
                    " such rows out, or set label=null"
                )
            if absent := [name for number, name in enumerate(names) if number not in set(there)]:
                shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
                log.warning("%s: %d classes have no image and are left out: %s", path, len(absent), shown)
        self.names = [names[value] if names else _class_name(value) for value in there]
        self._of_value = {value: number for number, value in enumerate(there)}

    def numbers(self, values: Sequence[Any]) -> list[int]:
        """The classes of rows with these labels; ValueError naming one that no training image has."""
        for row, value in enumerate(values):
            if value not in self._of_value:
                raise ValueError(
                    f"data.source.label: row {row} of the held-out split of {self.path} has the label {value!r}, which"
                    " no image of the training split has; leave such rows out"
                )
        return [self._of_value[value] for value in values]


def read_labels(rows: "datasets.Dataset", label: str, path: str) -> list[Any]:
    """The labels of all rows; ValueError for a column of another type, and naming the first row without one."""
    feature = rows.features[label]
    dtype = getattr(feature, "dtype", "")
    if not isinstance(dtype, str) or not dtype.startswith(("int", "uint", "bool", "string", "large_string", "null")):
        raise ValueError(
            f"data.source.label: column {label!r} of {path} holds {feature}; a label is a text, a whole number, or true"
            " or false: name another column, or set label=null"
        )
    values = rows.select_columns([label]).with_format("arrow")[:].column(label).to_pylist() if len(rows) else []
    missing = [row for row, value in enumerate(values) if value is None or value == ""]
    if missing:
        raise ValueError(
            f"data.source.label: row {missing[0]} of {path} has no label; leave such rows out, or set label=null"
        )
    return values


def check_attributes(rows: "datasets.Dataset", names: Sequence[str], path: str) -> None:
    """ValueError naming an attribute's column that does not hold yes or no in every row."""
    for name in names if len(rows) else ():
        column = rows.select_columns([name]).with_format("arrow")[:].column(name)
        if column.null_count or not str(column.type).startswith(("bool", "int", "uint")):
            values = column.to_pylist()
            row = next((row for row, value in enumerate(values) if not isinstance(value, int)), 0)
            raise ValueError(f"data.source.attributes: row {row} of {path}: {name} is {values[row]!r}; {YES_OR_NO}")


def _class_name(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
