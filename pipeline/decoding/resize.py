"""Antialiased bicubic resize of a crop, by torch's kernels for uint8.

Columns are resized before rows, since the kernel for columns is the quicker of the two and takes the rows of
the crop in place. (Pillow resizes rows first; the rounding in between makes a tenth of a level's difference.)
"""

import numpy as np
import torch
from torch.nn import functional as F

from pipeline.decoding.crops import Crop


def resize_channels(pixels: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """A crop of uint8 pixels [height, width, 3 or 4], resized to [size, size, 3 or 4]."""
    left, top, width, height = crop
    columns = _resize(pixels[top : top + height], size, pixels.shape[1])
    return _resize(np.ascontiguousarray(columns[:, left : left + width]), size, size)


def resize_plane(plane: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """A crop of one channel, uint8 [height, width], resized to [size, size].

    The kernels take a single channel at the price of four; columns do not care where a pixel ends, so four of
    them pass for one pixel, and rows are resized as the columns of the transposed image.
    """
    left, top, width, height = crop
    columns = _resize_columns(plane[top : top + height, left : left + width], size)
    return _resize_columns(columns.T, size).T


def _resize_columns(plane: np.ndarray, size: int) -> np.ndarray:
    height, width = plane.shape
    padded = np.zeros((height, -(-width // 4) * 4), np.uint8)
    padded[:, :width] = plane
    quads = padded.reshape(height, -1, 4)
    return _resize(quads, size, quads.shape[1]).reshape(size, -1)[:, :width]


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Contiguous pixels [H, W, 3 or 4] to [height, width, 3 or 4]."""
    # In this order the batch of one has the stride that torch takes for channels last; any other, though
    # nothing ever steps along that dimension, means two copies that reorder the channels.
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(image, (height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
