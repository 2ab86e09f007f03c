"""Values of columns and what is known of them: every comparison is true, false or, as in SQL, unknown (None).

What a value is compared with decides how it is read, since tables hold text as often as numbers.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Columns = Mapping[str, Any]
Value = Any  # a text, number, bool or list; None where it is missing or cannot be read
Reader = Callable[[Columns], Value]
Condition = Callable[[Columns], bool | None]

_NUMBER = re.compile(r"\s*([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)\s*", re.ASCII)


def is_number(value: Value) -> bool:
    """Whether a value is a number, which True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def clean(value: Value) -> Value:
    """A JSON value, where NaN (a table's empty cell, in some writers) is a missing one."""
    return None if isinstance(value, float) and math.isnan(value) else value


def as_number(value: Value) -> int | float | None:
    """A value read as a number; None where it is none."""
    if isinstance(value, str) and (match := _NUMBER.fullmatch(value)):
        digits = match[1]
        return int(digits) if digits.lstrip("+-").isdigit() and len(digits) < 40 else float(digits)
    return value if is_number(value) else None


def as_bool(value: Value) -> bool | None:
    """A value read as True or False; None where it is neither."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def combine(conditions: Sequence[Condition], columns: Columns, decided_by: bool) -> bool | None:
    """`or` (decided by a True) or `and` (decided by a False) of conditions that may be unknown."""
    unknown = False
    for condition in conditions:
        value = condition(columns)
        if value is decided_by:
            return decided_by
        unknown |= value is None
    return None if unknown else not decided_by


def negate(value: bool | None) -> bool | None:
    """`not` of what may be unknown."""
    return None if value is None else not value


def compare(
    sign: Callable[[Any, Any], bool], left: Value, right: Value, *, numbers: bool = False
) -> bool | None:
    """Compare two values read alike: as numbers where one is a number (or `numbers` says so), as bools where
    one is a bool, else as texts.
    """
    if numbers or is_number(left) or is_number(right):
        left, right = as_number(left), as_number(right)
    elif isinstance(left, bool) or isinstance(right, bool):
        left, right = as_bool(left), as_bool(right)
    elif not (isinstance(left, str) and isinstance(right, str)):
        return None
    return None if left is None or right is None else sign(left, right)


def contains(container: Value, item: Value) -> bool | None:
    """Whether a text holds a text, or a list a value."""
    if isinstance(container, str) and isinstance(item, str):
        return item in container
    if isinstance(container, list) and item is not None:
        return any(compare(operator.eq, member, item) is True for member in container)
    return None


def calculate(operation: Callable[[Any, Any], Any], left: Value, right: Value) -> int | float | None:
    """Arithmetic on numbers; None where one is missing or there is no result."""
    if left is None or right is None:
        return None
    try:
        return clean(operation(left, right))
    except (ZeroDivisionError, OverflowError):
        return None
