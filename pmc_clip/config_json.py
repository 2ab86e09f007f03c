"""Config dataclasses from JSON: every unknown, missing or mistyped field is named with its place."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pmc_clip.errors import ModelError

Config = TypeVar("Config")


def from_json(cls: type[Config], data: Any, place: str) -> Config:
    """The config dataclass `cls` from a mapping, its fields' types taken at their word.

    A class may name fields in BOOKKEEPING that it has no use for: they are passed over, if they say what
    stands there, or whatever they say where None stands there.
    place: the name that errors give for where the data came from.
    """
    if not isinstance(data, Mapping):
        raise ModelError(f"{place}: expected an object with fields, got {data!r}")
    data = _without(getattr(cls, "BOOKKEEPING", {}), data, place)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise ModelError(
            f"{place}: unknown field {', '.join(map(repr, unknown))}: remove it; "
            f"known are {', '.join(fields)}"
        )
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in data]:
        raise ModelError(f"{place}: field {', '.join(map(repr, missing))} is missing: add it")
    hints = typing.get_type_hints(cls)
    values = {name: _value(hints[name], value, f"{place}: {name}") for name, value in data.items()}
    try:
        return cls(**values)
    except ModelError as error:
        raise ModelError(f"{place}: {error}") from error


def _value(hint: Any, value: Any, place: str) -> Any:
    """`value` as the type `hint`; JSON's lists become tuples and its objects config dataclasses."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (member for member in typing.get_args(hint) if member is not types.NoneType)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_json(hint, value, place)
    if typing.get_origin(hint) is tuple:
        members = typing.get_args(hint)
        if not isinstance(value, list | tuple) or len(value) != len(members):
            raise ModelError(f"{place}: expected a list of {len(members)} numbers, got {value!r}")
        return tuple(_value(member, item, place) for member, item in zip(members, value, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ModelError(f"{place}: expected {hint.__name__}, got {value!r}")
    return value


def _without(bookkeeping: Mapping[str, Any], data: Mapping[str, Any], place: str) -> dict[str, Any]:
    kept = {}
    for name, value in data.items():
        neutral = bookkeeping.get(name)
        if name not in bookkeeping:
            kept[name] = value
        elif neutral is not None and value != neutral:
            raise ModelError(f"{place}: {name} is {value!r}: only {neutral!r} is supported; remove the field")
    return kept
