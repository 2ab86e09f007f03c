"""What transcoding does to size, pixels and the loader's speed, on real figures; prints a table in Markdown.

    python benchmarks/transcoding.py --csv train.csv --images images/

PSNR holds the published evaluation preprocessing (224 pixels) of the stored image against that of the
original, of the figures whose bytes changed. Those with a colour profile or in CMYK are left out of it: their
colours are meant to change. Packing and loading (`pipeline.decode.TrainImages`, settings interleaved) are
timed by the processor's clock, on one core.
"""

import argparse
import csv
import io
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.decode import CROP_UNIFORMS, EvalImages, TrainImages
from pipeline.sharding.image_check import ImageRules
from pipeline.sharding.transcode import Transcoding, process_image

SIZE = 224
SETTINGS: dict[str, Transcoding | None] = {
    "originals": None,
    "`--resize 512`": Transcoding(512),
    "`--resize 512 --format jpeg`": Transcoding(512, "jpeg"),
    "`--resize 512 --format jpeg --quality 90`": Transcoding(512, "jpeg", 90),
    "`--resize 512 --format webp --quality 90`": Transcoding(512, "webp", 90),
    "`--format jpeg`": Transcoding(None, "jpeg"),
}


def decibels(original: bytes, stored: bytes) -> float:
    seen = np.empty((2, SIZE, SIZE, 3), np.uint8)
    for data, out in zip((original, stored), seen, strict=True):
        EvalImages(SIZE)(memoryview(data), (), out)
    error = np.square(seen[0].astype(float) - seen[1]).mean()
    return 10 * float(np.log10(255**2 / max(error, 1e-9)))


def plain(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return image.mode != "CMYK" and not image.info.get("icc_profile")


def decode(data: bytes) -> None:
    TrainImages(SIZE)(memoryview(data), [0.5] * CROP_UNIFORMS, np.empty((SIZE, SIZE, 3), np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", required=True, nargs="+", help="tables with a column image")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are reported")
    args = parser.parse_args()
    originals = [
        Path(args.images, row["image"]).read_bytes()
        for table in args.csv
        for row in csv.DictReader(Path(table).read_text(encoding="utf-8").splitlines(keepends=True))
    ]
    stored, seconds = {}, {}
    for name, transcoding in SETTINGS.items():
        begin = time.process_time()
        stored[name] = [process_image(data, ImageRules(), transcoding)[0] for data in originals]
        seconds[name] = time.process_time() - begin
    rates: dict[str, list[float]] = {name: [] for name in SETTINGS}
    torch.set_num_threads(1)
    for _ in range(args.rounds):
        for name, images in stored.items():
            begin = time.process_time()
            for data in images:
                decode(data)
            rates[name].append(len(images) / (time.process_time() - begin))
    print(f"{len(originals)} images; rates are images for a second of one core\n")
    print("| | MB | of the originals | unchanged | PSNR median, dB | 5 % below | packed | loaded |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    whole = sum(map(len, originals))
    for name, images in stored.items():
        pairs = list(zip(originals, images, strict=True))
        ratios = [decibels(a, b) for a, b in pairs if a != b and plain(a)]
        median, low = (f"{np.percentile(ratios, p):.1f}" if ratios else "" for p in (50, 5))
        size, kept = sum(map(len, images)), sum(a == b for a, b in pairs)
        print(
            f"| {name} | {size / 1e6:.1f} | {size / whole:.0%} | {kept} | {median} | {low} | "
            f"{len(images) / seconds[name]:,.0f} | "
            f"{statistics.median(rates[name]):,.0f} |"
        )


if __name__ == "__main__":
    main()
