"""Whether the bytes of an image are whole, and what they hold.

Damage is found at the least cost that finds all of it: a JPEG is decoded at an eighth of its size, which
reads every bit of the file and skips most of the arithmetic; a PNG is unpacked and its checksums compared;
other formats are decoded. What a full decode by Pillow refuses is refused, and what is taken the loader can
decode.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

from PIL import Image, UnidentifiedImageError

from pipeline.sharding.png_check import surely_whole_png
from pipeline.sharding.rows import Rejected
from pmc_clip.transforms import to_rgb

# Extension by true format: what is in the file decides, not what its name says.
EXTENSIONS = {
    "JPEG": "jpg",
    "PNG": "png",
    "GIF": "gif",
    "WEBP": "webp",
    "TIFF": "tif",
    "BMP": "bmp",
    "MPO": "jpg",
}
_SIGNATURES = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"II+\0": "tif",  # BigTIFF
    b"MM\0+": "tif",
    b"BM": "bmp",
}
Verification = Literal["full", "header", "none"]


@dataclass(frozen=True)
class ImageRules:
    """What an image must be: how much of it is read to find out, and the sizes that are taken.

    With `none` only the format is looked at, so sizes cannot be held against the other two rules.
    """

    verify: Verification = "full"
    min_side: int = 1  # pixels of the shorter side
    max_pixels: int = 89_478_485  # past twice this, Pillow, and with it the loader, opens none anyway


@dataclass(frozen=True)
class CheckedImage:
    """An image that was taken: the extension of its true format, Pillow's mode, and its size in pixels.

    Mode and size are "" and 0 where the rules did not ask to look.
    """

    extension: str
    mode: str
    width: int
    height: int


def check_image(data: bytes, rules: ImageRules) -> CheckedImage:
    """Look at an image as far as the rules ask; Rejected where it cannot be taken."""
    if rules.verify == "none":
        return _unseen(_extension(data))
    with open_checked(data, rules) as (image, checked):
        if rules.verify == "full":
            _find_damage(image, data)
    return checked


@cache
def _unseen(extension: str) -> CheckedImage:
    return CheckedImage(extension, "", 0, 0)


@contextmanager
def open_checked(data: bytes, rules: ImageRules) -> Iterator[tuple[Image.Image, CheckedImage]]:
    """An image that is opened, its pixels not decoded yet, and what its header says.

    Rejected where the header tells that it cannot be taken, and where a decoder fails inside.
    """
    if not data:
        raise Rejected("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                extension = EXTENSIONS.get(image.format or "")
                if not extension:
                    raise Rejected(f"format {image.format} is not supported")
                if min(image.size) < rules.min_side:
                    raise Rejected("too small")
                if image.width * image.height > rules.max_pixels:
                    raise Rejected("too many pixels")
                yield image, CheckedImage(extension, image.mode, *image.size)
    except UnidentifiedImageError:
        _extension(data)
        raise Rejected("broken image") from None
    except Image.DecompressionBombError:
        raise Rejected("too many pixels") from None
    except (Rejected, MemoryError):  # memory is this machine's trouble, not the image's
        raise
    # Decoders raise nearly anything on a broken image: OSError, SyntaxError, struct.error, zlib.error, …
    except Exception as error:
        cut = "truncated" in str(error).lower() or _cut_webp(data)
        raise Rejected("truncated" if cut else "broken image") from error


def _find_damage(image: Image.Image, data: bytes) -> None:
    """Raise what a decoder raises on an image that the loader could not decode."""
    if image.format in ("JPEG", "MPO"):
        image.draft("L", (1, 1))  # the smallest scale, and no colour
        image.load()
    elif not (image.format == "PNG" and surely_whole_png(image, data)):
        to_rgb(image)  # as the loader does: a palette may be found wanting only here


def _extension(data: bytes) -> str:
    """The extension of the format that the first bytes announce; Rejected where they announce none."""
    if not data:
        raise Rejected("empty file")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for signature, extension in _SIGNATURES.items():
        if data.startswith(signature):
            return extension
    raise Rejected("not an image")


def _cut_webp(data: bytes) -> bool:
    """Whether a WebP file is shorter than it says; its decoder does not tell this from other damage."""
    return data[:4] == b"RIFF" and len(data) < int.from_bytes(data[4:8], "little") + 8
