"""`--config run.json`: a run's saved flags as the defaults of another's.

What a run writes into its config.json are its flags under their fields' names, and beside them, under `run`,
what followed from them (which is not read).
"""

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.checks import flag_name
from pipeline.training.config import TrainConfig
from pipeline.training.start import DERIVED
from shards import UsageError


def saved_flags(arguments: Sequence[str]) -> TrainConfig | None:
    """The flags in the file that `--config` among the arguments names, which the other arguments override;
    None where it is not there. UsageError where the file is not one.
    """
    for number, argument in enumerate(arguments):
        if argument == "--config" and number + 1 < len(arguments):
            return read_flags(Path(arguments[number + 1]))
        if argument.startswith("--config="):
            return read_flags(Path(argument.removeprefix("--config=")))
    return None


def read_flags(path: Path) -> TrainConfig:
    """The flags of a config.json; UsageError naming what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--config {path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config {path}: it holds no flags; give a run's config.json")
    content.pop(DERIVED, None)
    hints = typing.get_type_hints(TrainConfig)
    if unknown := sorted(content.keys() - hints.keys()):
        raise UsageError(
            f"--config {path}: there is no flag {', '.join(map(flag_name, unknown))}: take it out of the file"
        )
    values: dict[str, Any] = {}
    for name, value in content.items():
        if not _is_of(value, hints[name]):
            raise UsageError(f"--config {path}: {name} is {value!r}, which {flag_name(name)} cannot be")
        values[name] = tuple(value) if isinstance(value, list) else value
    required = [
        field.name for field in dataclasses.fields(TrainConfig) if field.default is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in values]:
        raise UsageError(f"--config {path}: {', '.join(missing)} is not among its flags: add it")
    return TrainConfig(**values)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON is one of a field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, list) and all(_is_of(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint
