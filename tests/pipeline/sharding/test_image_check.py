"""The check of images: it finds what a full decode finds, at every depth, and agrees with the loader."""

import io
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from pipeline.decode import CROP_UNIFORMS, EvalImages, TrainImages
from pipeline.sharding.image_check import CheckedImage, ImageRules, check_image
from pipeline.sharding.rows import Rejected

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning"
)

KINDS = [
    *(("JPEG", mode, {}) for mode in ("RGB", "L", "CMYK")),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "RGB", {"restart_marker_rows": 1}),
    ("MPO", "RGB", {}),
    *(("PNG", mode, {}) for mode in ("RGB", "L", "LA", "RGBA", "P", "1", "I;16")),
    ("PNG", "RGB", {"transparency": (9, 9, 9)}),
    ("GIF", "P", {}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("BMP", "RGB", {}),
    ("TIFF", "F", {}),
    *(("TIFF", "RGB", {"compression": name}) for name in ("raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate")),
]


def encoded(format: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (90, 60), **options) -> bytes:
    """A picture that is smooth and noisy in parts."""
    width, height = size
    rng = np.random.default_rng(0)
    pixels = np.add.outer(np.arange(height), np.arange(width)) % 256
    pixels = np.stack([pixels, 255 - pixels, rng.integers(0, 256, pixels.shape)], axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels)
    image = image.convert("L").convert(mode) if mode in ("I;16", "F") else image.convert(mode)
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def reason(data: bytes, **rules) -> str | None:
    """Why an image is rejected; None where it is taken."""
    try:
        check_image(data, ImageRules(**rules))
    except Rejected as rejected:
        return str(rejected)
    return None


def decodes(data: bytes) -> bool:
    """Whether Pillow decodes all of it: the measure of the check."""
    try:
        Image.open(io.BytesIO(data)).load()
    except Exception:
        return False
    return True


def load(data: bytes) -> None:
    """Decode as training and evaluation do; raises ImageError."""
    for stage in (TrainImages(16), EvalImages(16)):
        stage(memoryview(data), [0.5] * CROP_UNIFORMS, np.empty((16, 16, 3), np.uint8))


def damaged(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """The same file, cut at places and with bytes changed."""
    yield data[: rng.randrange(len(data))]
    yield data[: -rng.randrange(1, 16)]
    for changes, region in ((1, len(data)), (20, len(data)), (3, min(800, len(data)))):
        changed = bytearray(data)
        for _ in range(changes):
            changed[rng.randrange(region)] = rng.randrange(256)
        yield bytes(changed)
    start = rng.randrange(len(data))
    hole = min(512, len(data) - start)
    yield data[:start] + bytes(hole) + data[start + hole :]


def compare(whole: bytes, rng: random.Random) -> tuple[int, int]:
    """Hold the check against a full decode and the loader; how many were refused and taken."""
    refused = 0
    variants = list(damaged(whole, rng))
    for data in variants:
        found = reason(data)
        assert (found is None) == decodes(data), found
        if found is None:
            load(data)
        refused += found is not None
    return refused, len(variants) - refused


@pytest.mark.parametrize(("format", "mode", "options"), KINDS)
def test_damage_of_every_kind_of_file_is_judged_as_a_full_decode_and_the_loader_judge(format, mode, options):
    whole = encoded(format, mode, **options)
    load(whole)
    assert reason(whole) is None
    rng = random.Random(1)
    counts = [compare(whole, rng) for _ in range(4)]
    assert sum(refused for refused, _ in counts) >= 4


def real_figures(shared) -> list[bytes]:
    return [path.read_bytes() for path in sorted((shared / "pmc_sample" / "images").iterdir())]


def test_real_figures_are_taken_and_described_as_pillow_does(shared):
    for data in real_figures(shared)[::4]:
        with Image.open(io.BytesIO(data)) as image:
            found = check_image(data, ImageRules())
            assert (found.mode, found.width, found.height) == (image.mode, *image.size)


def test_damage_of_real_figures_is_judged_as_a_full_decode_and_the_loader_judge(shared):
    rng = random.Random(0)
    counts = [compare(data, rng) for data in real_figures(shared)[::30]]
    assert min(np.sum(counts, axis=0)) > 20


@pytest.mark.slow
def test_damage_of_all_real_figures_is_judged_as_a_full_decode_and_the_loader_judge(shared):
    rng = random.Random(0)
    counts = [compare(data, rng) for data in real_figures(shared) for _ in range(3)]
    assert min(np.sum(counts, axis=0)) > 1000


@pytest.mark.parametrize(
    ("format", "extension"),
    [
        ("JPEG", "jpg"),
        ("MPO", "jpg"),
        ("PNG", "png"),
        ("GIF", "gif"),
        ("WEBP", "webp"),
        ("TIFF", "tif"),
        ("BMP", "bmp"),
    ],
)
def test_the_extension_is_that_of_the_true_format_at_every_depth(format, extension):
    data = encoded(format)
    assert check_image(data, ImageRules("none")) == CheckedImage(extension, "", 0, 0)
    header = check_image(data, ImageRules("header"))
    assert (header.extension, header.width, header.height) == (extension, 90, 60)
    assert check_image(data, ImageRules("full")) == header


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_cut_file_is_called_truncated_and_only_the_full_check_reads_that_far(format):
    data = encoded(format, size=(300, 300))
    cut = data[: len(data) * 3 // 4]
    assert reason(cut) == "truncated"
    assert reason(cut, verify="none") is None
    if format != "WEBP":  # whose decoder wants the whole file to begin with
        assert reason(cut, verify="header") is None


@pytest.mark.parametrize("verify", ["full", "header", "none"])
def test_what_is_no_image_is_said_to_be_none(verify):
    assert reason(b"", verify=verify) == "empty file"
    for data in (b"<html>404 Not Found</html>", b"RIFF\0\0\0\0WAVEfmt ", b"\0" * 5000):
        assert reason(data, verify=verify) == "not an image"


def test_a_known_beginning_followed_by_nonsense_is_a_broken_image():
    for beginning in (b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP"):
        assert reason(beginning + bytes(20)) == "broken image"


def test_a_format_that_the_loader_is_not_made_for_is_named():
    assert reason(encoded("ICO", size=(32, 32))) == "format ICO is not supported"
    assert reason(encoded("PPM"), verify="header") == "format PPM is not supported"


@pytest.mark.parametrize("verify", ["full", "header"])
def test_images_outside_the_size_rules_are_rejected_and_those_on_the_edge_taken(verify):
    data = encoded(size=(90, 60))
    assert reason(data, verify=verify, min_side=60, max_pixels=5400) is None
    assert reason(data, verify=verify, min_side=61) == "too small"
    assert reason(data, verify=verify, max_pixels=5399) == "too many pixels"


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, their checksums right."""
    written = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def png_header(width: int, height: int, depth: int = 8, colour_type: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)


def test_a_decompression_bomb_is_rejected_before_it_is_unpacked():
    bomb = png(png_header(30_000, 30_000), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b""))
    for verify in ("full", "header"):
        assert reason(bomb, verify=verify) == "too many pixels"
        assert reason(bomb, verify=verify, max_pixels=10**12) == "too many pixels"  # the loader could not


END = (b"IEND", b"")
ROWS = b"".join(bytes([row % 5]) + bytes(range(30)) for row in range(10))  # 10 x 10 pixels, every filter


@pytest.mark.parametrize(
    ("chunks", "taken"),
    [
        ([(b"IDAT", zlib.compress(ROWS)), END], True),
        ([(b"IDAT", zlib.compress(ROWS)[:30]), (b"IDAT", zlib.compress(ROWS)[30:]), END], True),
        ([(b"IDAT", zlib.compress(ROWS)), (b"tEXt", b"date\x00today"), END], True),
        ([(b"IDAT", zlib.compress(b"\x05" + ROWS[1:])), END], False),
        ([(b"IDAT", zlib.compress(ROWS[:-31])), END], True),  # decoders leave the last row black
        ([(b"IDAT", zlib.compress(ROWS)[:-2] + b"\0\0"), END], False),
        (
            [
                (b"IDAT", zlib.compress(ROWS)[:30]),
                (b"tEXt", b"a\x00b"),
                (b"IDAT", zlib.compress(ROWS)[30:]),
                END,
            ],
            False,
        ),
        ([END], False),
    ],
    ids=[
        "whole",
        "in pieces",
        "text after",
        "no such filter",
        "row missing",
        "sum wrong",
        "text between",
        "empty",
    ],
)
def test_pngs_whose_checksums_are_right_are_judged_by_what_they_unpack_to(chunks, taken):
    data = png(png_header(10, 10), *chunks)
    assert decodes(data) == taken
    assert (reason(data) is None) == taken


@pytest.mark.parametrize(
    "chunks",
    [[], [(b"PLTE", bytes(768)), (b"tRNS", bytes(300))]],
    ids=["no palette", "more transparent colours than a palette can have"],
)
def test_a_palette_that_the_loader_stumbles_over_is_found(chunks):
    data = png(png_header(10, 10, colour_type=3), *chunks, (b"IDAT", zlib.compress(bytes(110))), END)
    assert decodes(data)  # to numbers of colours, that is; there are no such colours
    assert reason(data) == "broken image"


def test_worker_processes_need_not_load_torch():
    code = "import sys, pipeline.sharding.transcode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
