"""How the names in a table's image column become paths inside a source of images."""

import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.sharding.rows import Rejected

LARGEST_IMAGE = 512 * 2**20  # bytes; a file beyond it is no figure, and would fill a worker's memory
_DEEPEST = 16  # leading folders that may be left out of a table's names


class NotHere(Rejected):
    """This source does not have the image; another one may."""


def missing() -> NotHere:
    """The reason of an image that is nowhere in the source."""
    return NotHere("missing")


def outside() -> NotHere:
    """The reason of a name that leads out of the source."""
    return NotHere("outside the image folder")


def relative_path(name: str) -> str:
    """A name as a path below a source, without `.` and `..`; NotHere where it leads out of the source."""
    path = posixpath.normpath(name)
    if path == ".":
        raise missing()
    if path.startswith(("/", "../")) or path == ".." or "://" in name:
        raise outside()
    return path


@dataclass(frozen=True)
class NameRule:
    """What is done to every name of a table before a source is asked for it."""

    leading: int = 0  # folders at its beginning to leave out
    backslashes: bool = False  # whether they separate folders, as on Windows

    def path(self, name: str) -> str:
        """The path to ask the source for."""
        if self.backslashes:
            name = name.replace("\\", "/")
        if not self.leading:
            return name
        parts = [part for part in name.split("/") if part not in ("", ".")]
        return "/".join(parts[min(self.leading, len(parts) - 1) :]) if parts else name


def decide_rule(names: Sequence[str], holds: Callable[[Sequence[str]], int]) -> tuple[NameRule, int]:
    """The rule by which a source holds most of these names, and how many that is; of equal ones the rule that
    changes least.

    holds: how many of some paths the source has.
    """
    best, most = NameRule(), -1
    for backslashes in (False, True) if any("\\" in name for name in names) else (False,):
        slashes = [name.replace("\\", "/") if backslashes else name for name in names]
        deepest = max((len(name.strip("/").split("/")) - 1 for name in slashes), default=0)
        for leading in range(min(deepest, _DEEPEST) + 1):
            rule = NameRule(leading, backslashes)
            found = holds([rule.path(name) for name in names])
            if found > most:
                best, most = rule, found
            if most == len(names):
                return best, most
    return best, most
