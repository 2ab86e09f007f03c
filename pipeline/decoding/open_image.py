"""Open an image with Pillow, with one kind of error for whatever is wrong with it."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError


class ImageError(Exception):
    """An image cannot be decoded; the message says why."""


@contextmanager
def opened(data: memoryview) -> Iterator[Image.Image]:
    """The image in its own mode, not decoded yet; what Pillow raises inside the block becomes ImageError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except UnidentifiedImageError as error:  # its own words end in a memory address
        raise ImageError("not an image") from error
    # Pillow raises these and no others for input it cannot take (a broken PNG chunk is a SyntaxError there, a
    # palette that is missing an AssertionError).
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        AssertionError,
        Image.DecompressionBombError,
    ) as error:
        raise ImageError(str(error) or type(error).__name__) from error
