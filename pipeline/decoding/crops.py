"""Where a training image is cropped: torchvision's RandomResizedCrop as a pure function of random numbers."""

import math
from collections.abc import Sequence

CROP_ATTEMPTS = 10
# Every attempt takes an area and a ratio; the last two place the crop.
CROP_UNIFORMS = 2 * CROP_ATTEMPTS + 2
_RATIO = (3 / 4, 4 / 3)

Crop = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""


def random_resized_crop(width: int, height: int, uniforms: Sequence[float], crop_scale: float) -> Crop:
    """The crop (left, top, width, height) in pixels, with the distribution of torchvision's
    RandomResizedCrop.

    uniforms: CROP_UNIFORMS numbers in [0, 1), from which alone the crop follows.
    """
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for attempt in range(CROP_ATTEMPTS):
        area = width * height * (crop_scale + (1 - crop_scale) * uniforms[2 * attempt])
        ratio = math.exp(low + (high - low) * uniforms[2 * attempt + 1])
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int((width - crop_width + 1) * uniforms[-2])
            top = int((height - crop_height + 1) * uniforms[-1])
            return left, top, crop_width, crop_height
    crop_width, crop_height = width, height
    if width < _RATIO[0] * height:
        crop_height = round(width / _RATIO[0])
    elif width > _RATIO[1] * height:
        crop_width = round(height * _RATIO[1])
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def reduction(crop: Crop, size: int) -> int:
    """By how much (1, 2, 4 or 8) an image may be reduced before its crop is resized to `size` pixels a side:
    as many pixels as wanted are left in either direction, and the crop's edges are on whole ones.
    """
    return min(_covering(crop, size), math.gcd(8, *crop))


def _covering(crop: Crop, size: int) -> int:
    return next((factor for factor in (8, 4, 2) if factor * size <= min(crop[2:])), 1)


def on_reduced_pixels(crop: Crop, width: int, height: int, size: int) -> Crop:
    """The crop of a width × height image with its edges moved to where `reduction` may be the most that
    leaves the pixels wanted.

    Edges move by at most half a pixel of the result (by less than one at the end of an image that the
    reduction does not divide). Without that, the crop of a reduced image would begin between its pixels, and
    fine lines would come out elsewhere than from the whole image.
    """
    factor = _covering(crop, size)

    def edges(first: int, length: int, whole: int) -> tuple[int, int]:
        begin = (first + factor // 2) // factor * factor
        end = min((first + length + factor // 2) // factor, whole // factor) * factor
        return begin, end - begin

    left, crop_width = edges(crop[0], crop[2], width)
    top, crop_height = edges(crop[1], crop[3], height)
    return left, top, crop_width, crop_height
