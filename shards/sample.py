"""One sample: its members out of its tar bytes, and what they say."""

import json
from dataclasses import dataclass
from typing import Any

from shards.errors import DamagedSample, DataError
from shards.manifest import MemberNames
from shards.tar import is_hidden, members, split_name

_COLUMNS = "json"


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample's raw members by extension, as views into its block's bytes; it has at least one caption."""

    key: str
    members: dict[str, memoryview]
    image: memoryview
    captions: tuple[str, ...]

    @property
    def caption(self) -> str:
        """The caption; of several, the first."""
        return self.captions[0]

    @property
    def columns(self) -> dict[str, Any]:
        """What the sample's `.json` says, parsed anew each time; {} where it has none. DamagedSample where
        that member is not a JSON object.
        """
        member = self.members.get(_COLUMNS)
        if member is None:
            return {}
        try:
            columns = json.loads(str(member, "utf-8"))
        except (ValueError, RecursionError) as error:
            raise DamagedSample(f"the .json of sample {self.key!r} cannot be read: {error}") from None
        if not isinstance(columns, dict):
            raise DamagedSample(f"the .json of sample {self.key!r} is not a JSON object")
        return columns


def parse_sample(data: memoryview, names: MemberNames) -> Sample:
    """The sample whose tar bytes are `data`; DataError where it is damaged, or has no image or caption."""
    key = ""
    by_extension = {}
    for name, content in members(data):
        if not is_hidden(name):
            own_key, extension = split_name(name)
            key = key or own_key
            by_extension[extension] = content
    for extension in names.image_extensions:
        if extension in by_extension:
            image = by_extension[extension]
            break
    else:
        raise DataError(f"sample {key!r} has no image (none of {', '.join(names.image_extensions)})")
    caption = by_extension.get(names.caption_extension)
    if caption is None:
        raise DataError(f"sample {key!r} has no caption (no {names.caption_extension})")
    return Sample(key, by_extension, image, _captions(key, caption, names))


def _captions(key: str, member: memoryview, names: MemberNames) -> tuple[str, ...]:
    """All captions that a member holds, at least one."""
    try:
        text = str(member, "utf-8")
    except UnicodeDecodeError:
        raise DataError(f"the caption of sample {key!r} is not UTF-8") from None
    if names.caption_key is not None:
        return _captions_in_json(key, text, names.caption_key)
    if not names.caption_lines:
        return (text,)
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not lines:
        raise DataError(f"sample {key!r} has no caption (no line with text in its {names.caption_extension})")
    return lines


def _captions_in_json(key: str, text: str, caption_key: str) -> tuple[str, ...]:
    try:
        found = json.loads(text)[caption_key]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"the JSON of sample {key!r} has no caption under {caption_key!r}") from None
    if isinstance(found, str):
        return (found,)
    if not isinstance(found, list) or not all(isinstance(caption, str) for caption in found):
        raise DataError(f"the caption of sample {key!r} is not text or a list of texts")
    captions = tuple(caption for caption in found if caption.strip())
    if not captions:
        raise DataError(f"sample {key!r} has no caption (a list without any text under {caption_key!r})")
    return captions
