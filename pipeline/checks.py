"""Checks of values that several commands share; each raises UsageError naming the flag or the variable."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards import Folder, UsageError


def flag_name(field: str) -> str:
    """How a config's field is written on the command line."""
    return f"--{field.replace('_', '-')}"


def check_at_least(config: Any, **bounds: float) -> None:
    """Refuse a config whose named fields are below their bounds, or no numbers; None (not given) is fine."""
    for field, bound in bounds.items():
        value = getattr(config, field)
        if value is not None and not (value >= bound and math.isfinite(value)):
            raise UsageError(f"{flag_name(field)} {value}: it must be at least {bound}")


def check_share(config: Any, *fields: str) -> None:
    """Refuse a config whose named fields are not shares: above 0 and at most 1."""
    for field in fields:
        if not 0 < getattr(config, field) <= 1:
            raise UsageError(
                f"{flag_name(field)} {getattr(config, field)}: it must lie above 0 and at most at 1"
            )


def parse_bytes(flag: str, text: str) -> int:
    """The bytes that `500MB`, `2GiB` or `1000000` stand for; UsageError naming the flag for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?", text)
    if not found or (found[3] and not found[2]):
        raise UsageError(f"{flag} {text}: write a number of bytes, such as 500MB or 2GiB")
    size = int(
        float(found[1]) * (1024 if found[3] else 1000) ** " kMGT".index(found[2].replace("K", "k") or " ")
    )
    if size < 1:
        raise UsageError(f"{flag} {text}: it must be at least one byte")
    return size


def parse_count(flag: str, text: str) -> int:
    """The number that `100M`, `1.6M`, `500k` or `1000000` stands for; UsageError naming the flag for anything
    else.
    """
    found = re.fullmatch(r"(\d[\d_,]*(?:\.\d+)?)([kKMGB]?)", text)
    factor = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
    count = round(float(found[1].replace(",", "")) * factor[found[2]]) if found else 0
    if count < 1:
        raise UsageError(f"{flag} {text}: write a number of at least 1, such as 500k or 100M")
    return count


def parse_share(flag: str, text: str) -> float:
    """The share that `1%` or `0.01` stands for; UsageError naming the flag for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    share = float(found[1]) / (100 if found[2] else 1) if found else -1
    if not 0 <= share <= 1:
        raise UsageError(f"{flag} {text}: write a share such as 1% or 0.01")
    return share


def local_path(flag: str, value: str) -> Path:
    """The path that a flag gives; an address is refused, since it would become a local folder of its name."""
    if "://" in value:
        raise UsageError(f"{flag} {value}: only a path on this machine can be given here")
    return Path(value)


def output_folder(flag: str, address: str) -> Folder:
    """The folder for output that a flag gives; UsageError where a file is in its place."""
    folder = Folder(address)
    if not folder.remote:
        check_no_file(flag, Path(folder.address))
    return folder


def check_no_file(flag: str, folder: Path) -> None:
    """Refuse a folder for output where a file has its name or that of a folder above it."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{flag} {folder}: {there} is a file; give a folder")


def environment_number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """The whole number that a variable gives, or the default; UsageError for anything else."""
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise UsageError(
            f"{name} is missing in the environment, though the launcher's other variables are there"
        )
    if not re.fullmatch(r"\d+", text, re.ASCII):
        raise UsageError(f"{name}={text!r} in the environment is not a number")
    return int(text)
