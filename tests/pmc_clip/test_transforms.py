"""Image transforms: the published crop bit for bit, and colours as a viewer shows them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as published

import pmc_clip


@pytest.fixture(scope="module")
def figures(shared):
    files = sorted((shared / "pmc_sample" / "images").iterdir())[::9]
    return [Image.open(file) for file in files]


def _published(image: Image.Image, size: int) -> np.ndarray:
    steps = [
        published.Resize(size, interpolation=published.InterpolationMode.BICUBIC),
        published.CenterCrop(size),
        lambda cropped: cropped.convert("RGB"),
    ]
    return np.asarray(published.Compose(steps)(image))


@pytest.mark.parametrize("size", [64, 224])
def test_crop_is_the_published_one_bit_for_bit(figures, size):
    seen = set()
    for image in figures:
        if image.mode in ("RGB", "L"):
            for turned in (image, image.transpose(Image.Transpose.ROTATE_90)):
                assert np.array_equal(pmc_clip.center_crop(turned, size), _published(turned, size))
            seen.add(image.mode)
    assert seen == {"RGB", "L"}


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (65, 64), (64, 64), (200, 3), (131, 77)])
def test_odd_shapes_crop_as_published(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    found = pmc_clip.center_crop(image, 64)
    assert found.shape == (64, 64, 3)
    assert np.array_equal(found, _published(image, 64))


def test_normalisation_is_the_published_one_in_the_given_memory_format(figures):
    crops = np.stack([pmc_clip.center_crop(image, 64) for image in figures[:4]])
    images = torch.from_numpy(crops).permute(0, 3, 1, 2)
    steps = published.Compose([published.ToTensor(), published.Normalize(pmc_clip.MEAN, pmc_clip.STD)])
    found = pmc_clip.normalize(images)
    assert torch.equal(found, torch.stack([steps(crop) for crop in crops]))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert images.dtype == torch.uint8
    assert torch.equal(images, torch.from_numpy(crops).permute(0, 3, 1, 2))


def _one_pixel(image: Image.Image) -> tuple[int, ...]:
    converted = pmc_clip.to_rgb(image)
    assert converted.mode == "RGB"
    return converted.getpixel((0, 0))


def test_transparency_lies_on_white():
    assert _one_pixel(Image.new("RGBA", (2, 2), (0, 0, 0, 0))) == (255, 255, 255)
    assert _one_pixel(Image.new("RGBA", (2, 2), (200, 0, 0, 255))) == (200, 0, 0)
    assert _one_pixel(Image.new("LA", (2, 2), (0, 0))) == (255, 255, 255)
    assert _one_pixel(Image.new("LA", (2, 2), (0, 128))) == (127, 127, 127)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert _one_pixel(palette) == (10, 20, 30)
    palette.info["transparency"] = 0
    assert _one_pixel(palette) == (255, 255, 255)
    keyed = Image.new("RGB", (2, 2), (1, 2, 3))
    keyed.info["transparency"] = (1, 2, 3)
    assert _one_pixel(keyed) == (255, 255, 255)


def test_sixteen_bits_scale_to_eight():
    ramp = np.array([[0, 200, 257, 32896, 65535]], dtype=np.uint16)
    expected = [0, 1, 1, 128, 255]
    for image in (Image.fromarray(ramp), Image.fromarray(ramp.astype(np.int32))):
        assert image.mode.startswith("I")
        assert np.asarray(pmc_clip.to_rgb(image))[0, :, 0].tolist() == expected


def test_other_modes_convert_as_pillow_does(figures):
    assert _one_pixel(Image.new("1", (2, 2), 1)) == (255, 255, 255)
    assert _one_pixel(Image.new("L", (2, 2), 7)) == (7, 7, 7)
    cmyk = next(image for image in figures if image.mode == "RGB").convert("CMYK")
    assert np.array_equal(pmc_clip.to_rgb(cmyk), cmyk.convert("RGB"))


def test_every_real_figure_becomes_a_crop(figures):
    for image in figures:
        crop = pmc_clip.center_crop(image, 64)
        assert crop.shape == (64, 64, 3)
        assert crop.dtype == np.uint8
