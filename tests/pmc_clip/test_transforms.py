"""Image transforms: the published crop bit for bit, and colours as a viewer shows them."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as published

import pmc_clip
from pmc_clip import transforms


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


@pytest.mark.parametrize("size", [64, 224])
def test_published_crop_is_the_published_one_for_every_mode(figures, shared, size):
    """Resized in its own mode, so palettes by nearest neighbour, and RGB afterwards."""
    stored = [Image.open(file) for file in (shared / "pmc_sample" / "images").glob("*.[pg][ni][gf]")]
    grey = next(image for image in figures if image.mode == "L")
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    made = [grey.convert(mode) for mode in ("1", "P", "PA", "LA", "CMYK", "YCbCr", "I", "F")] + [deep]
    keyed = next(image for image in figures if image.mode == "RGB").copy()
    keyed.info["transparency"] = keyed.getpixel((0, 0))
    seen = set()
    for image in (*figures, *stored, *made, keyed):
        assert np.array_equal(transforms.published_center_crop(image, size), _published(image, size))
        seen.add(image.mode)
    assert seen >= {"RGB", "RGBA", "L", "P", "PA", "LA", "CMYK", "1", "I;16", "I", "F"}


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


def test_images_are_normalised_once():
    normalised = pmc_clip.normalize(torch.zeros(3, 4, 4, dtype=torch.uint8))
    kept = normalised.clone()
    with pytest.raises(pmc_clip.ModelError, match=r"images are torch\.float32: normalise those of t"):
        pmc_clip.normalize(normalised)
    assert torch.equal(normalised, kept)


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


def test_half_transparency_is_mixed_with_white_as_pillow_composes_it():
    """Every colour at every alpha, to the bit."""
    alpha, colour = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    image = Image.fromarray(np.stack([colour, 255 - colour, colour // 2, alpha], axis=-1))
    white = Image.new("RGBA", image.size, "white")
    expected = Image.alpha_composite(white, image).convert("RGB")
    assert np.array_equal(pmc_clip.to_rgb(image), expected)


def _png(width: int, depth: int, colour_type: int, row: bytes, *extra: tuple[bytes, bytes]) -> Image.Image:
    """A PNG of one row of samples, with chunks before the pixels, opened."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *extra, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return Image.open(io.BytesIO(data))


def test_sixteen_bit_colour_and_alpha_of_a_png():
    row = struct.pack(">6H", 0x0000, 0x80FF, 0xFFFF, 0x1234, 0x5678, 0x9ABC)
    assert np.asarray(pmc_clip.to_rgb(_png(2, 16, 2, row))).tolist() == [[[0, 128, 255], [18, 86, 154]]]
    row = struct.pack(">4H", 0x1234, 0xFFFF, 0x1234, 0x0000)  # grey and alpha
    assert np.asarray(pmc_clip.to_rgb(_png(2, 16, 4, row))).tolist() == [[[18, 18, 18], [255, 255, 255]]]
    row = struct.pack(">2H", 0x0101, 0xFF00)  # grey
    assert np.asarray(pmc_clip.to_rgb(_png(2, 16, 0, row))).tolist() == [[[1, 1, 1], [254, 254, 254]]]


def test_transparency_that_png_keeps_beside_the_pixels_lies_on_white():
    palette = (b"PLTE", bytes([10, 20, 30, 40, 50, 60, 0, 0, 0]))
    image = _png(3, 8, 3, bytes([0, 1, 2]), palette, (b"tRNS", bytes([255, 0, 128])))
    found = np.asarray(pmc_clip.to_rgb(image))[0].tolist()
    assert found == [[10, 20, 30], [255, 255, 255], [127, 127, 127]]
    image = _png(2, 8, 2, bytes([1, 2, 3, 4, 5, 6]), (b"tRNS", struct.pack(">3H", 4, 5, 6)))
    assert np.asarray(pmc_clip.to_rgb(image))[0].tolist() == [[1, 2, 3], [255, 255, 255]]
    image = _png(2, 8, 0, bytes([7, 9]), (b"tRNS", struct.pack(">H", 7)))
    assert np.asarray(pmc_clip.to_rgb(image))[0].tolist() == [[255, 255, 255], [9, 9, 9]]


def _cmyk_jpeg(inks: tuple[int, int, int, int], marker: bool) -> Image.Image:
    """A JPEG of one colour, with or without the marker by which Adobe's programs say that it is CMYK."""
    file = io.BytesIO()
    Image.new("CMYK", (16, 16), inks).save(file, "JPEG", quality=100)
    data = file.getvalue()
    start = data.index(b"\xff\xee")
    length = struct.unpack(">H", data[start + 2 : start + 4])[0]
    image = Image.open(io.BytesIO(data if marker else data[:start] + data[start + 2 + length :]))
    assert ("adobe" in image.info) is marker
    return image


@pytest.mark.parametrize("marker", [True, False])
@pytest.mark.parametrize("inks", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 51), (10, 100, 200, 0)])
def test_cmyk_jpegs_are_read_as_stored_inverted_with_and_without_adobes_marker(inks, marker):
    """As browsers do; no ink is white paper, and every ink takes away its share of what black leaves."""
    black = 1 - inks[3] / 255
    expected = [255 * (1 - ink / 255) * black for ink in inks[:3]]
    assert np.abs(np.array(_one_pixel(_cmyk_jpeg(inks, marker))) - expected).max() <= 2


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


def _published_input(crop: list[object]) -> published.Compose:
    """The published pipeline around a crop."""
    return published.Compose(
        [
            *crop,
            lambda cropped: cropped.convert("RGB"),
            published.ToTensor(),
            published.Normalize(pmc_clip.MEAN, pmc_clip.STD),
        ]
    )


@pytest.mark.parametrize("size", [64, 224])
def test_evaluation_input_is_the_published_one_bit_for_bit(figures, size):
    bicubic = published.InterpolationMode.BICUBIC
    expected = _published_input([published.Resize(size, bicubic), published.CenterCrop(size)])
    preprocess = transforms.EvalTransform(size)
    seen = set()
    for image in figures:
        if image.mode in ("RGB", "L"):
            found = preprocess(image)
            assert torch.equal(found, expected(image))
            assert found.dtype == torch.float32
            assert found.is_contiguous()
            seen.add(image.mode)
    assert seen == {"RGB", "L"}


@pytest.mark.parametrize("crop_scale", [0.9, 0.1])
def test_training_input_is_the_published_one_bit_for_bit_from_the_same_seed(figures, crop_scale):
    crop = published.RandomResizedCrop(
        64, scale=(crop_scale, 1.0), interpolation=published.InterpolationMode.BICUBIC
    )
    expected, preprocess = _published_input([crop]), transforms.TrainTransform(64, crop_scale=crop_scale)
    thin = Image.new("L", (400, 3), 90)
    seen = set()
    for seed, image in enumerate([*figures, thin]):
        if image.mode in ("RGB", "L"):
            torch.manual_seed(seed)
            published_result = expected(image)
            torch.manual_seed(seed)
            assert torch.equal(preprocess(image), published_result)
            seen.add(image.mode)
    assert seen == {"RGB", "L"}


def test_transforms_read_other_modes_as_a_viewer_shows_them():
    clear = Image.new("RGBA", (80, 70), (0, 0, 0, 0))
    white = Image.new("RGB", (80, 70), "white")
    for preprocess in (transforms.EvalTransform(64), transforms.TrainTransform(64)):
        assert torch.equal(preprocess(clear), preprocess(white))


class _Figures(torch.utils.data.Dataset):
    """A shaded figure for each number, through a transform."""

    def __init__(self, transform: transforms.EvalTransform | transforms.TrainTransform) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> torch.Tensor:
        ramp = np.arange(50 * 40, dtype=np.uint8).reshape(40, 50) + np.uint8(number)
        return self.transform(Image.fromarray(ramp))


@pytest.mark.slow
def test_transforms_serve_the_spawned_workers_of_a_dataloader():
    preprocess = transforms.EvalTransform(32)
    workers = torch.utils.data.DataLoader(
        _Figures(preprocess), batch_size=3, num_workers=1, multiprocessing_context="forkserver"
    )
    alone = torch.stack([_Figures(preprocess)[number] for number in range(6)])
    assert torch.equal(torch.cat(list(workers)), alone)


def test_transforms_say_what_they_are_and_survive_pickling():
    preprocess = transforms.TrainTransform(64, crop_scale=0.5)
    assert "TrainTransform(size=64" in repr(preprocess)
    assert "crop_scale=0.5" in repr(preprocess)
    for transform in (preprocess, transforms.EvalTransform(64)):
        assert pickle.loads(pickle.dumps(transform)) == transform
