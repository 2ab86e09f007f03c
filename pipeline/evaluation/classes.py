"""The classes of a classification: their labels in the data, and the words that stand for each.

A file of classes (JSON) is a list of labels, an object that gives each label its names, or the whole:

    {
      "label_key": "modality",
      "templates": ["{}", "an axial view, {}"],
      "classes": {"CT": ["computed tomography", "CT scan"], "US": "ultrasound"}
    }

Each name in each template is a prompt; a class is the mean of its prompts' text features (prompt ensembling,
Radford et al. 2021).
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from shards import UsageError

DEFAULT_TEMPLATES = ("{}", "an image of {}", "a figure that shows {}")


@dataclass(frozen=True)
class Classes:
    """Labels as the data have them, in the order of the scores' columns, with what stands for each."""

    labels: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    label_key: str | None = None
    """Column of the samples that holds the label, if the file names one."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def prompts(self) -> list[list[str]]:
        """The prompts of each class: every name in every template."""
        return [
            [template.replace("{}", name) for name in names for template in self.templates]
            for names in self.names
        ]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of classes; UsageError where it is none."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
        except OSError as error:
            raise UsageError(
                f"--classes {path}: it cannot be read ({error.strerror}): check the path"
            ) from error
        except ValueError as error:
            raise UsageError(f"--classes {path}: not a JSON file ({error}): correct it") from error
        try:
            return cls.from_json(content)
        except ValueError as error:
            raise UsageError(f"--classes {path}: {error}") from error

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """From what such a file holds; ValueError that says what is wrong with it."""
        whole = content if isinstance(content, dict) and "classes" in content else {"classes": content}
        if unknown := whole.keys() - {"classes", "templates", "label_key"}:
            raise ValueError(
                f"unknown fields {', '.join(sorted(unknown))}: there are classes, templates, label_key"
            )
        names = _names_by_label(whole["classes"])
        if len(names) < 2:
            raise ValueError("at least two classes are needed")
        templates = whole.get("templates", list(DEFAULT_TEMPLATES))
        if not _are_texts(templates) or not all("{}" in template for template in templates):
            raise ValueError("templates must be a list of texts, each with {} where the class's name goes")
        label_key = whole.get("label_key")
        if label_key is not None and not isinstance(label_key, str):
            raise ValueError("label_key must be the name of a column")
        return cls(tuple(names), tuple(names.values()), tuple(templates), label_key)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} stands twice")
    return dict(pairs)


def _names_by_label(classes: Any) -> dict[str, tuple[str, ...]]:
    if isinstance(classes, list):
        if not all(isinstance(label, str | int) for label in classes):
            raise ValueError("a list of classes must hold their labels, texts or whole numbers")
        labels = [str(label) for label in classes]
        if len(set(labels)) < len(labels):
            raise ValueError(f"{Counter(labels).most_common(1)[0][0]!r} stands twice")
        return {label: (label,) for label in labels}
    if not isinstance(classes, Mapping):
        raise ValueError("classes must be a list of labels, or an object that gives each label its names")
    found = {}
    for label, names in classes.items():
        names = [names] if isinstance(names, str) else names
        if not _are_texts(names):
            raise ValueError(f"class {label!r} needs a name, or a list of names")
        found[label] = tuple(names)
    return found


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(v, str) and v.strip() for v in values)
