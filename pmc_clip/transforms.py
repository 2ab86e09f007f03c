"""Images to model input: any Pillow mode to RGB, the published evaluation crop, normalisation."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # images are made ready in processes that should not wait for torch
    import torch

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Channel means of the published preprocessing (CLIP's training data), of values in [0, 1]."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel standard deviations of the published preprocessing (CLIP's training data)."""


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it, in mode RGB.

    Transparency (alpha channel, palette or colour key) lies on white, as figures are printed; Pillow alone
    would show the colour hidden under it, often black. 16-bit grey is scaled to 8 bits, and floating-point
    grey from its lowest to its highest value; Pillow alone would clip both at 255. Pillow raises ValueError
    for modes that have no conversion.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        image.load()  # the result must outlive the file that the picture may still be tied to
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        image = _float_as_grey(image)
    return image.convert("RGB")


def _float_as_grey(image: Image.Image) -> Image.Image:
    """Its lowest value black, its highest white: there is no agreement what white is, and viewers do so."""
    values = np.asarray(image, np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    share = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1.0)
    return Image.fromarray((255 * share).round().astype(np.uint8))


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """The published evaluation input: shorter side to `size`, then the middle: [size, size, 3] uint8.

    Bit for bit torchvision's Resize(size, BICUBIC) and CenterCrop(size), for images of modes RGB and L.
    Others become RGB first, as a viewer shows them.
    """
    return np.array(_resized_middle(to_rgb(image), size))


def published_center_crop(image: Image.Image, size: int) -> np.ndarray:
    """As `center_crop`, bit for bit what the published code makes of any mode: it resizes first and converts
    to RGB afterwards, so that palettes are resized by nearest neighbour and transparency is dropped.
    """
    return np.array(_resized_middle(image, size).convert("RGB"))


def _resized_middle(image: Image.Image, size: int) -> Image.Image:
    """The image with its shorter side resized to `size`, cut to the square in its middle, in its own mode."""
    width, height = image.size
    short = min(width, height)
    width, height = size * width // short, size * height // short
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def normalize(images: "torch.Tensor") -> "torch.Tensor":
    """[B, 3, H, W] uint8 -> float32 on the same device, in the same memory format, by MEAN and STD."""
    pixels = images.float()
    mean = pixels.new_tensor(MEAN).view(3, 1, 1)
    std = pixels.new_tensor(STD).view(3, 1, 1)
    return pixels.div_(255).sub_(mean).div_(std)
