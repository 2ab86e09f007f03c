"""Images to model input: any Pillow mode to RGB, the published crops, normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pmc_clip.config import VisionConfig
from pmc_clip.errors import ModelError

if TYPE_CHECKING:  # images are made ready in processes that should not wait for torch
    import torch

MEAN = VisionConfig.mean
"""Channel means of the published preprocessing (CLIP's training data), of values in [0, 1]."""
STD = VisionConfig.std
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
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
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


def normalize(
    images: "torch.Tensor", mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> "torch.Tensor":
    """[B, 3, H, W] (or one of them) uint8 -> float32 on the same device, in the same memory format."""
    import torch

    if images.dtype != torch.uint8:
        raise ModelError(f"images are {images.dtype}: normalise those of torch.uint8, and once")
    pixels = images.float()
    # Made on the device: a copy from the host would wait for all that a GPU still has to do.
    mean_of_channels, std_of_channels = (
        torch.stack([pixels.new_full((1, 1), value) for value in values]) for values in (mean, std)
    )
    return pixels.div_(255).sub_(mean_of_channels).div_(std_of_channels)


@dataclass(frozen=True)
class EvalTransform:
    """A PIL image of any mode -> [3, size, size] float32: the middle of it, normalised.

    To the bit the published pipeline's result for images of modes RGB and L; others become RGB first, as a
    viewer shows them. It can be pickled, for the workers of a DataLoader.
    """

    size: int
    """Side of the result, pixels."""
    mean: tuple[float, float, float] = MEAN
    """Channel means to normalise by, of values in [0, 1]."""
    std: tuple[float, float, float] = STD
    """Channel standard deviations to normalise by."""

    def __call__(self, image: Image.Image) -> "torch.Tensor":
        """The image -> [3, size, size] float32."""
        return _normalized(center_crop(image, self.size), self.mean, self.std)


@dataclass(frozen=True)
class TrainTransform:
    """A PIL image of any mode -> [3, size, size] float32: a random crop of it, normalised.

    torchvision's RandomResizedCrop with bicubic resizing, drawn from torch's generator: as the published
    pipeline's, to the bit, for images of modes RGB and L. It can be pickled, for the workers of a DataLoader.
    """

    size: int
    """Side of the result, pixels."""
    mean: tuple[float, float, float] = MEAN
    """Channel means to normalise by, of values in [0, 1]."""
    std: tuple[float, float, float] = STD
    """Channel standard deviations to normalise by."""
    crop_scale: float = 0.9
    """The least share of the image's area that a crop takes."""

    def __call__(self, image: Image.Image) -> "torch.Tensor":
        """The image -> [3, size, size] float32."""
        from torchvision.transforms import RandomResizedCrop

        top, left, height, width = RandomResizedCrop.get_params(
            image, scale=[self.crop_scale, 1.0], ratio=[3 / 4, 4 / 3]
        )
        crop = to_rgb(image).crop((left, top, left + width, top + height))
        crop = crop.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return _normalized(np.array(crop), self.mean, self.std)


def _normalized(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> "torch.Tensor":
    """[H, W, 3] uint8 -> [3, H, W] float32."""
    import torch

    return normalize(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), mean, std)
