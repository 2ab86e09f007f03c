"""What the decode function could be made of: speed and pixels of its variants, on real figures, interleaved.

    python benchmarks/decode.py --csv train.csv --images images/

Each variant turns every image of the tables, held in memory, into a 224-pixel random resized crop. The
reference is a full decode and Pillow's bicubic; differences to it are in levels of 255.
"""

import argparse
import csv
import io
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.nn import functional as F

from pipeline.decode import CROP_UNIFORMS, TrainImages, random_resized_crop
from pmc_clip.transforms import to_rgb

SIZE = 224
Variant = Callable[[bytes, list[float]], np.ndarray]


def torch_resize(pixels: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    left, top, width, height = box
    crop = torch.from_numpy(pixels[top : top + height, left : left + width]).permute(2, 0, 1)[None]
    return F.interpolate(crop, (SIZE, SIZE), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()


def reference(data: bytes, uniforms: list[float]) -> np.ndarray:
    image = to_rgb(Image.open(io.BytesIO(data)))
    left, top, width, height = random_resized_crop(*image.size, uniforms, 0.9)
    box = (left, top, left + width, top + height)
    return np.asarray(image.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def used(data: bytes, uniforms: list[float]) -> np.ndarray:
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    TrainImages(SIZE)(memoryview(data), uniforms, out)
    return out


def dct_scaled(spare: float, whole_pixels: bool) -> Variant:
    """JPEGs at the smallest DCT scale at which the crop still has `spare` times the wanted pixels."""

    def decode(data: bytes, uniforms: list[float]) -> np.ndarray:
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return used(data, uniforms)
        box = random_resized_crop(width, height, uniforms, 0.9)
        factor = min(box[2], box[3]) / (SIZE * spare)
        if colours not in ("YCbCr", "Gray") or factor <= 1:
            return used(data, uniforms)
        least = {"min_height": math.ceil(height / factor), "min_width": math.ceil(width / factor)}
        pixels = simplejpeg.decode_jpeg(data, "RGB", **least)
        x, y = pixels.shape[1] / width, pixels.shape[0] / height
        edges = (box[0] * x, box[1] * y, (box[0] + box[2]) * x, (box[1] + box[3]) * y)
        if whole_pixels:
            left, top, right, bottom = (round(edge) for edge in edges)
            return torch_resize(pixels, (left, top, right - left, bottom - top))
        image = Image.fromarray(pixels)
        edges = (edges[0], edges[1], min(edges[2], image.width), min(edges[3], image.height))
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=edges))

    return decode


VARIANTS: dict[str, Variant] = {
    "Pillow decode and bicubic (reference)": reference,
    "full libjpeg-turbo decode, torch's bicubic (used)": used,
    "DCT scale over the crop, Pillow, fractional edges": dct_scaled(1.0, False),
    "DCT scale over 1.5 times the crop, the same": dct_scaled(1.5, False),
    "DCT scale over the crop, torch, whole-pixel edges": dct_scaled(1.0, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", required=True, nargs="+", help="tables with a column image")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are reported")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    names = [
        row["image"]
        for table in args.csv
        for row in csv.DictReader(Path(table).read_text(encoding="utf-8").splitlines(keepends=True))
    ]
    rng = np.random.default_rng(0)
    jobs = [(Path(args.images, name).read_bytes(), rng.random(CROP_UNIFORMS).tolist()) for name in names]
    expected = [reference(*job).astype(int) for job in jobs]
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with ThreadPoolExecutor(args.threads, initializer=lambda: torch.set_num_threads(1)) as pool:
        for _ in range(args.rounds):
            for name, variant in VARIANTS.items():
                begin = time.perf_counter()
                list(pool.map(lambda job, v=variant: v(*job), jobs * 3))
                rates[name].append(3 * len(jobs) / (time.perf_counter() - begin))
    print(f"{len(jobs)} images, {args.threads} threads, median of {args.rounds} interleaved rounds")
    print(f"{'':<52}{'samples/s':>10}{'mean':>8}{'worst':>8}")
    for name, variant in VARIANTS.items():
        off = [np.abs(variant(*job) - pixels).mean() for job, pixels in zip(jobs, expected, strict=True)]
        print(f"{name:<52}{statistics.median(rates[name]):>10,.0f}{np.mean(off):>8.3f}{max(off):>8.2f}")


if __name__ == "__main__":
    main()
