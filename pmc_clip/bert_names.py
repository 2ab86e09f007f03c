"""Pretrained BERTs that have two names, so that a config may say either.

    tower = read_under_any_name(name, BertModel.from_pretrained)

The hub renamed some; caches and folders made before keep the old name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Loaded = TypeVar("Loaded")

ALIASES = (
    (
        "BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext",
        "BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
    ),
)


def names_to_try(name: str) -> list[str]:
    """The names of one BERT in the order to try: `name`, its alias; what needs no network comes first.

    name: of the hub (owner/name), or a folder; an alias has the same owner or parent folder.
    """
    parent, slash, last = name.rpartition("/")
    known = next((names for names in ALIASES if last in names), (last,))
    names = [name, *(f"{parent}{slash}{alias}" for alias in known if alias != last)]
    return sorted(names, key=lambda one: not _at_hand(one)) if len(names) > 1 else names


def read_under_any_name(name: str, read: Callable[[str], Loaded]) -> Loaded:
    """What `read` makes of the first of the BERT's names that it can read; else the error for `name` itself.

    read: raises OSError, ValueError or RuntimeError where it cannot, as transformers' from_pretrained does.
    """
    errors = {}
    for candidate in names_to_try(name):
        try:
            return read(candidate)
        except (OSError, ValueError, RuntimeError) as error:
            errors[candidate] = error
    raise errors[name]


def _at_hand(name: str) -> bool:
    """A folder, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir():
        return True
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # no name that the hub could have, as a path
        return False
