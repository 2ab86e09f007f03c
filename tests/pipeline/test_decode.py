"""Pixels: the fast path against the reference, the crops against torchvision's."""

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from pipeline.decode import (
    CROP_UNIFORMS,
    EvalImages,
    ImageError,
    TrainImages,
    decode_rgb,
    random_resized_crop,
)
from pmc_clip.transforms import center_crop, to_rgb

SIZE = 224


def draw(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, CROP_UNIFORMS))


def test_training_pixels_agree_with_a_full_decode_and_pillows_bicubic(shared):
    """On every real figure: below 1 level of 255 on average, below 4 for the worst image."""
    with open(shared / "pmc_sample" / "meta.csv", encoding="utf-8") as table:
        names = [row["image"] for row in csv.DictReader(table)]
    differences = []
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    for name, uniforms in zip(names, draw(len(names)).tolist(), strict=True):
        data = (shared / "pmc_sample" / "images" / name).read_bytes()
        TrainImages(SIZE)(memoryview(data), uniforms, out)
        image = to_rgb(Image.open(io.BytesIO(data)))
        left, top, width, height = random_resized_crop(*image.size, uniforms, 0.9)
        crop = image.crop((left, top, left + width, top + height)).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        differences.append(np.abs(out.astype(int) - np.asarray(crop).astype(int)).mean())
    assert len(differences) == 277
    assert np.mean(differences) < 0.05
    assert np.max(differences) < 1


def test_evaluation_pixels_are_the_exact_centre_crop(shared):
    name = "PMC1538633_1476-7120-4-29-2.jpg"
    data = (shared / "pmc_sample" / "images" / name).read_bytes()
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    EvalImages(SIZE)(memoryview(data), [], out)
    assert np.array_equal(out, center_crop(Image.open(io.BytesIO(data)), SIZE))


@pytest.mark.parametrize(("width", "height"), [(600, 400), (300, 900), (1000, 90), (64, 64)])
def test_crops_have_torchvisions_distribution(width, height):
    """Means and spreads of place and size over 4,000 crops agree with RandomResizedCrop's."""
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.5, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)])
    ours = np.array([random_resized_crop(width, height, u, 0.5) for u in draw(4000).tolist()])[
        :, [1, 0, 3, 2]
    ]
    spread = theirs.std(axis=0)
    assert np.abs(ours.mean(axis=0) - theirs.mean(axis=0)).max() <= 0.1 * spread.max() + 0.5
    assert np.abs(ours.std(axis=0) - spread).max() <= 0.1 * spread.max() + 0.5
    left, top, crop_width, crop_height = random_resized_crop(width, height, [0.999999] * CROP_UNIFORMS, 0.5)
    assert left + crop_width <= width
    assert top + crop_height <= height


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0 cut", b"\x89PNG\r\n\x1a\n\0\0"])
def test_what_is_no_image_is_an_image_error(data):
    with pytest.raises(ImageError):
        decode_rgb(memoryview(data))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_truncated_image_is_an_image_error(format):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(out, format)
    with pytest.raises(ImageError):
        decode_rgb(memoryview(out.getvalue()[: len(out.getvalue()) // 2]))
