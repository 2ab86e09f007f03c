"""The flags that say how a table of images and captions is read, and where its images are."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from shards import UsageError


@dataclass(frozen=True, kw_only=True)
class TableFlags:
    """How a command reads tables."""

    images: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--image-dir"])] = ()
    """Where a table's images are: folders, .zip or .tar files, addresses such as s3://bucket/images; without
    it, the table's own folder, or the `images`, `images.zip` or `images.tar` beside it.
    """
    image_key: Annotated[str, tyro.conf.arg(aliases=["--csv-img-key"])] = "image"
    """Column of a table with the image's name: a path below where the images are, or an address."""
    caption_key: Annotated[str, tyro.conf.arg(aliases=["--csv-caption-key"])] = "caption"
    """Column of a table with the caption."""
    separator: Annotated[str | None, tyro.conf.arg(aliases=["--csv-separator"])] = None
    """What separates the fields of a CSV table, one character; without it, a comma."""

    @property
    def field_separator(self) -> str | None:
        """The separator, where a shell's `\\t` means a tab."""
        return None if self.separator is None else self.separator.replace("\\t", "\t")

    def check_table(self) -> None:
        """Raise UsageError where the separator cannot be one."""
        separator = self.field_separator
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            raise UsageError(
                f"--separator {self.separator!r}: it must be one character, no quote and no end of line"
            )
