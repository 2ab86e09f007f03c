"""What the flags of `pipeline.index` say about a sample's members."""

import re

from shards import MemberNames, UsageError

IMAGE_EXTENSIONS = "jpg,jpeg,png,webp,gif,tif,tiff,bmp"


def member_names(
    image_ext: str = IMAGE_EXTENSIONS,
    caption_ext: str | None = None,
    caption_key: str | None = None,
    caption_lines: bool = False,
) -> MemberNames:
    """Which members are image and caption; UsageError where the flags contradict each other."""
    images = tuple(_extension("--image-ext", part) for part in image_ext.split(","))
    caption = _extension("--caption-ext", caption_ext or ("txt" if caption_key is None else "json"))
    if caption in images:
        raise UsageError(f"--caption-ext {caption}: it is among --image-ext, too")
    if caption_lines and caption_key is not None:
        raise UsageError(
            "--caption-lines: several captions under --caption-key are a list, not lines: leave it out"
        )
    return MemberNames(images, caption, caption_key, caption_lines)


def _extension(flag: str, text: str) -> str:
    extension = text.strip().removeprefix(".").lower()
    if not re.fullmatch(r"[^\s/,]+", extension):
        raise UsageError(f"{flag}: {text!r} is no extension; give them as jpg or jpg,png,webp")
    return extension
