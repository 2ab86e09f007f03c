"""Decode, crop and resize with as little work as the pixels allow.

Pixels are kept in the channels that they are stored in until they are few: grey stays one channel, CMYK four,
and both become RGB after resizing. JPEGs are decoded at the smallest of the whole, half, a quarter or an
eighth of their size that still covers the crop. What is not a sound JPEG is Pillow's, as is the last word on
what is broken.
"""

from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.decoding.crops import Crop, reduction
from pipeline.decoding.open_image import opened
from pipeline.decoding.resize import resize_channels, resize_plane
from pmc_clip.transforms import to_rgb

# The channels to ask simplejpeg for, by the colours a JPEG is stored in.
_CHANNELS = {"YCbCr": "RGB", "Gray": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}


def decode_crop(data: memoryview, choose_crop: Callable[[int, int], Crop], out: np.ndarray) -> None:
    """Decode the crop of an image that `choose_crop(width, height)` gives into `out` (uint8 [S, S, 3]);
    raises ImageError.
    """
    size = len(out)
    decoded = _decode_jpeg(data, choose_crop, size)
    if decoded is None:
        pixels = _decode_any(data)
        crop = choose_crop(pixels.shape[1], pixels.shape[0])
    else:
        pixels, crop = decoded
    channels = pixels.shape[2]
    if channels == 1:
        grey = resize_plane(pixels[..., 0], crop, size)
        for channel in range(3):  # several times as fast as broadcasting over the last axis
            out[..., channel] = grey
    elif channels == 3:
        out[:] = resize_channels(pixels, crop, size)
    else:
        out[:] = inverted_cmyk_as_rgb(resize_channels(pixels, crop, size))


def _decode_jpeg(
    data: memoryview, choose_crop: Callable[[int, int], Crop], size: int
) -> tuple[np.ndarray, Crop] | None:
    """The pixels of a JPEG [height, width, 1, 3 (RGB) or 4 (inverted CMYK)], whole or reduced, and the crop
    in them; None for what is not a JPEG, or one that libjpeg has something to say about.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _CHANNELS or height * width > (Image.MAX_IMAGE_PIXELS or height * width):
            return None
        crop = choose_crop(width, height)
        factor = reduction(crop, size)
        pixels = simplejpeg.decode_jpeg(
            data,
            _CHANNELS[colours],
            min_height=-(-height // factor),
            min_width=-(-width // factor),
        )
    except ValueError:
        return None
    left, top, width, height = (edge // factor for edge in crop)
    return pixels, (left, top, width, height)


def _decode_any(data: memoryview) -> np.ndarray:
    """All pixels of an image that Pillow can read, [height, width, 1 or 3]."""
    with opened(data) as image:
        if image.mode == "L" and not image.has_transparency_data:
            return np.array(image)[..., None]
        return np.array(to_rgb(image))


def inverted_cmyk_as_rgb(pixels: np.ndarray) -> np.ndarray:
    """CMYK as JPEGs hold it, 255 for no ink, to RGB: as Pillow does it, to the bit."""
    pixels = pixels.astype(np.uint16)
    paper = pixels[..., 3:]
    ink = (255 - pixels[..., :3]) * paper + 128
    return (paper - ((ink + (ink >> 8)) >> 8)).astype(np.uint8)
