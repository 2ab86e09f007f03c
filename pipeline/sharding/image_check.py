"""Whether the bytes of an image are whole, and what they hold."""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

from PIL import Image, UnidentifiedImageError

from pipeline.sharding.rows import Rejected

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
Verification = Literal["full", "header", "none"]


@dataclass(frozen=True)
class ImageRules:
    """What an image must be: how much of it is read to find out, and the sizes that are taken."""

    verify: Verification = "full"
    min_side: int = 1  # pixels of the shorter side
    max_pixels: int = 89_478_485  # Pillow's own limit


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
    if not data:
        raise Rejected("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data)) as image:
                extension = EXTENSIONS.get(image.format or "")
                if not extension:
                    raise Rejected(f"format {image.format} is not supported")
                image.load()
                return CheckedImage(extension, image.mode, *image.size)
        except UnidentifiedImageError:
            raise Rejected("not an image") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise Rejected("too many pixels") from None
        except (Rejected, MemoryError):  # memory is this machine's trouble, not the image's
            raise
        # Decoders raise nearly anything on a broken image: OSError, SyntaxError, struct.error, zlib.error, …
        except Exception as error:
            raise Rejected("truncated" if "truncated" in str(error) else "broken image") from error
