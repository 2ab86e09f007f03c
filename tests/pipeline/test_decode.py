"""Training and evaluation pixels: the fast path against the exact one, crops against torchvision's."""

import csv
import io
import struct

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms import functional as torchvision_functional

from pipeline.decode import CROP_UNIFORMS, EvalImages, ImageError, TrainImages, random_resized_crop
from pmc_clip.transforms import to_rgb

SIZE = 224
MIDDLE = [0.5] * CROP_UNIFORMS


def draw(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, CROP_UNIFORMS))


def pixels(stage: TrainImages | EvalImages, data: bytes, uniforms: list[float] = MIDDLE) -> np.ndarray:
    out = np.empty((stage.size, stage.size, 3), np.uint8)
    stage(memoryview(data), uniforms, out)
    return out


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(height: int, width: int, mode: str = "RGB") -> Image.Image:
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    return rgb.convert(mode)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours.astype(int) - theirs.astype(int)).mean())


@pytest.fixture(scope="module")
def figures(shared) -> list[bytes]:
    with open(shared / "pmc_sample" / "meta.csv", encoding="utf-8") as table:
        names = [row["image"] for row in csv.DictReader(table)]
    return [(shared / "pmc_sample" / "images" / name).read_bytes() for name in names]


@pytest.mark.parametrize("size", [SIZE, 96])
def test_fast_pixels_agree_with_a_full_decode_and_pillows_bicubic(figures, size):
    """On every real figure: below 1 level of 255 on average, below 4 for the worst image. (Most JPEGs are
    reduced while they are decoded: at 224 pixels to a half, at 96 some to an eighth.)
    """
    assert len(figures) == 277
    fast, differences = TrainImages(size), []
    for data, uniforms in zip(figures, draw(len(figures)).tolist(), strict=True):
        image = to_rgb(Image.open(io.BytesIO(data)))
        left, top, width, height = fast.crop(*image.size, uniforms)
        crop = image.crop((left, top, left + width, top + height))
        reference = crop.resize((size, size), Image.Resampling.BICUBIC)
        differences.append(difference(pixels(fast, data, uniforms), np.asarray(reference)))
    assert np.mean(differences) < 1
    assert np.max(differences) < 4


def test_exact_pixels_are_the_crop_resized_by_pillow_after_conversion(figures):
    exact = TrainImages(64, decode="exact")
    for data, uniforms in zip(figures[::20], draw(277)[::20].tolist(), strict=True):
        image = to_rgb(Image.open(io.BytesIO(data)))
        left, top, width, height = exact.crop(*image.size, uniforms)
        expected = torchvision_functional.resized_crop(
            image, top, left, height, width, [64, 64], InterpolationMode.BICUBIC
        )
        assert np.array_equal(pixels(exact, data, uniforms), np.asarray(expected))


MODES = {
    "RGB": ("JPEG", {"subsampling": "4:4:4"}),
    "L": ("JPEG", {}),
    "CMYK": ("JPEG", {}),
    "1": ("PNG", {}),
    "P": ("PNG", {"transparency": 3}),
    "LA": ("PNG", {}),
    "RGBA": ("PNG", {}),
    "I;16": ("PNG", {}),
}


def of_mode(mode: str) -> bytes:
    format, options = MODES[mode]
    if mode == "RGBA":
        image = Image.merge("RGBA", (*noise(90, 131).split(), noise(90, 131, "L").rotate(180)))
    elif mode == "LA":
        image = Image.merge("LA", (noise(90, 131, "L"), noise(90, 131, "L").rotate(180)))
    elif mode == "I;16":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (90, 131), np.uint16))
    else:
        image = noise(90, 131, mode)
    data = encoded(image, format, **options)
    assert Image.open(io.BytesIO(data)).mode == mode
    return data


@pytest.mark.parametrize("mode", MODES)
def test_published_pixels_are_torchvisions_on_the_picture_as_stored(mode):
    """Crop and resize in the image's own mode, RGB afterwards, bit for bit; training and evaluation."""
    data, uniforms = of_mode(mode), draw(1)[0].tolist()
    image = Image.open(io.BytesIO(data))
    left, top, width, height = random_resized_crop(*image.size, uniforms, 0.9)
    bicubic = InterpolationMode.BICUBIC
    trained = torchvision_functional.resized_crop(image, top, left, height, width, [64, 64], bicubic)
    found = pixels(TrainImages(64, decode="published"), data, uniforms)
    assert np.array_equal(found, np.asarray(trained.convert("RGB")))
    evaluated = CenterCrop(64)(Resize(64, bicubic)(image))
    found = pixels(EvalImages(64, decode="published"), data)
    assert np.array_equal(found, np.asarray(evaluated.convert("RGB")))


@pytest.mark.parametrize("mode", MODES)
def test_fast_pixels_agree_for_every_mode_even_of_noise(mode):
    """Noise in black and white is the worst case: the first resize clips what the second would have used."""
    data, uniforms = of_mode(mode), draw(1)[0].tolist()
    fast, exact = (pixels(TrainImages(64, decode=decode), data, uniforms) for decode in ("fast", "exact"))
    assert difference(fast, exact) < 3


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_reduced_jpegs_agree_for_every_mode(mode):
    picture = noise(90, 131).filter(ImageFilter.GaussianBlur(2)).convert(mode)
    data, uniforms = encoded(picture, "JPEG", quality=95), draw(1)[0].tolist()
    for size in (40, 20, 10):
        fast, exact = (pixels(TrainImages(size, decode=way), data, uniforms) for way in ("fast", "exact"))
        assert difference(fast, exact) < 1.5


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("wanted", [(224, 1), (447, 1), (448, 2), (895, 2), (896, 4), (1791, 4), (1792, 8)])
def test_the_smallest_scale_that_covers_the_crop_is_decoded(monkeypatch, size, wanted):
    """Sides are of the crop, here the whole image, for 224 pixels of the result; and as many times as that
    for others.
    """
    side, factor = wanted[0] * size // SIZE, wanted[1]
    decoded, decode = [], simplejpeg.decode_jpeg

    def seen(*args, **kwargs):
        decoded.append(decode(*args, **kwargs))
        return decoded[-1]

    monkeypatch.setattr(simplejpeg, "decode_jpeg", seen)
    pixels(TrainImages(size, crop_scale=1.0), encoded(Image.new("RGB", (side, side)), "JPEG"))
    assert [array.shape[0] for array in decoded] == [-(-side // factor)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2), (200, 3), (65, 64)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_odd_shapes_agree(shape, mode):
    data = encoded(noise(*shape, mode), "JPEG", quality=95, subsampling=0)
    fast, exact = (pixels(TrainImages(64, decode=decode), data) for decode in ("fast", "exact"))
    assert difference(fast, exact) < 2


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("side", [600, 601, 1350])
def test_large_jpegs_are_reduced_without_moving(subsampling, side):
    """A ramp in both directions shows a crop that is off by a fraction of a pixel."""
    ramp = np.linspace(0, 255, side)
    picture = np.stack(np.broadcast_arrays(ramp[None], ramp[:, None], 128 + 0 * ramp[None]), axis=-1)
    data = encoded(Image.fromarray(picture.astype(np.uint8)), "JPEG", quality=95, subsampling=subsampling)
    for uniforms in draw(3).tolist():
        fast, exact = (pixels(TrainImages(64, decode=decode), data, uniforms) for decode in ("fast", "exact"))
        assert difference(fast, exact) < 0.5
        # Half a pixel of the reduced image is 0.75 levels and more.
        assert np.abs((fast.astype(int) - exact).mean(axis=(0, 1))).max() < 0.5


def test_exif_orientation_is_left_as_it_is():
    image = noise(100, 100).resize((150, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned, plain = encoded(image, "JPEG", exif=exif), encoded(image, "JPEG")
    assert turned != plain
    for stage in (TrainImages(64), TrainImages(64, decode="exact"), EvalImages(64)):
        assert np.array_equal(pixels(stage, turned), pixels(stage, plain))


@pytest.mark.parametrize(("width", "height"), [(600, 400), (300, 900), (1000, 90), (64, 64)])
def test_crops_have_torchvisions_distribution(width, height):
    """Place, size, far edges, area and shape of 5,000 crops against RandomResizedCrop's: the largest
    difference between cumulative distributions is what chance allows at one in a thousand.
    """
    count = 5000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    drawn = [RandomResizedCrop.get_params(image, (0.5, 1.0), (3 / 4, 4 / 3)) for _ in range(count)]
    theirs = measures(np.array(drawn)[:, [1, 0, 3, 2]])
    ours = measures(np.array([random_resized_crop(width, height, u, 0.5) for u in draw(count).tolist()]))
    for name in ours:
        values = np.union1d(ours[name], theirs[name])
        shares = [
            np.searchsorted(np.sort(side[name]), values, side="right") / count for side in (ours, theirs)
        ]
        assert np.abs(shares[0] - shares[1]).max() < 1.95 * (2 / count) ** 0.5, name


def measures(crops: np.ndarray) -> dict[str, np.ndarray]:
    left, top, width, height = crops.T
    return {
        "left": left,
        "top": top,
        "width": width,
        "height": height,
        "right": left + width,
        "bottom": top + height,
        "area": width * height,
        "shape": width / height,
    }


def test_the_last_uniforms_stay_inside_the_image():
    for width, height in ((600, 400), (901, 1500), (5, 5)):
        left, top, crop_width, crop_height = TrainImages(64).crop(width, height, [0.999999] * CROP_UNIFORMS)
        assert left + crop_width <= width
        assert top + crop_height <= height


def test_crops_are_torchvisions_to_half_a_pixel_of_the_result_and_published_ones_wholly():
    """At the end of an image that the reduction does not divide (1303 × 1101), to less than a pixel."""
    fast, published, moved = TrainImages(SIZE), TrainImages(SIZE, decode="published"), 0
    for width, height in ((440, 400), (1300, 1100), (1303, 1101), (5000, 4000)):
        for uniforms in draw(50).tolist():
            crop = random_resized_crop(width, height, uniforms, 0.9)
            assert published.crop(width, height, uniforms) == crop
            off = np.abs(edges(fast.crop(width, height, uniforms)) - edges(crop)).max()
            most = 1 if width == 1303 else 0.5
            assert off <= most * min(crop[2:]) / SIZE if width > 440 else off == 0
            moved += off > 0
    assert moved > 100


def edges(crop: tuple[int, int, int, int]) -> np.ndarray:
    left, top, width, height = crop
    return np.array([left, top, left + width, top + height])


@pytest.mark.parametrize("decode", ["fast", "exact", "published"])
@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0 cut", b"\x89PNG\r\n\x1a\n\0\0"])
def test_what_is_no_image_is_an_image_error(data, decode):
    with pytest.raises(ImageError):
        pixels(TrainImages(64, decode=decode), data)


TRUNCATED = {
    "JPEG": lambda: encoded(noise(200, 200), "JPEG"),
    "progressive JPEG": lambda: encoded(noise(200, 200), "JPEG", progressive=True),
    "grey JPEG": lambda: encoded(noise(200, 200, "L"), "JPEG"),
    "reduced JPEG": lambda: encoded(noise(300, 300), "JPEG"),
    "CMYK JPEG": lambda: encoded(noise(200, 200, "CMYK"), "JPEG"),
    "PNG": lambda: encoded(noise(200, 200), "PNG"),
    "PNG with alpha": lambda: of_mode("RGBA"),
}


@pytest.mark.parametrize("kind", TRUNCATED)
def test_a_cut_image_is_refused_by_the_fast_path_exactly_where_it_is_by_the_exact_one(kind):
    whole = TRUNCATED[kind]()
    cuts = [1, 2, 3, 8, 13, 100, 1000] + [len(whole) * share // 10 for share in range(1, 10)]
    refused = []
    for cut in cuts:
        fast, exact = (reason_to_refuse(whole[:-cut], decode) for decode in ("fast", "exact"))
        assert fast == exact, cut
        refused.append(bool(fast))
    assert all(refused[cuts.index(100) :])


def reason_to_refuse(data: bytes, decode: str) -> str:
    try:
        pixels(TrainImages(64, decode=decode), data)
    except ImageError as error:
        return str(error) or "none given"
    return ""


def test_damaged_jpeg_that_pillow_takes_has_the_exact_paths_pixels():
    """libjpeg warns of it, so the fast path leaves it to Pillow."""
    data = bytearray(encoded(noise(200, 200), "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 3] = b"\xff\xd3\x55"
    fast, exact = (pixels(TrainImages(64, decode=decode), bytes(data)) for decode in ("fast", "exact"))
    assert difference(fast, exact) < 0.5


@pytest.mark.parametrize("decode", ["fast", "exact"])
def test_jpeg_that_claims_a_gigantic_size_is_refused_before_memory_is_taken(decode):
    data = bytearray(encoded(noise(16, 16, "L"), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 65500, 65500)
    with pytest.raises(ImageError, match="decompression bomb"):
        pixels(TrainImages(64, decode=decode), bytes(data))
