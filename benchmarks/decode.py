"""The decode function: its speed on real figures, what each of its steps brought, and what its pixels are.

    python benchmarks/decode.py --images images/

Every image, held in memory, becomes a 224-pixel random resized crop. Variants take turns, in thread pools of
one thread and of --threads; the numbers are medians over the rounds, ratios those of each round. CPU time is
what to compare where others use the machine. Differences are to "exact", in levels of 255, over an image.
"""

import argparse
import io
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.nn import functional as F

from pipeline.decode import CROP_UNIFORMS, TrainImages
from pipeline.decoding.crops import Crop, reduction
from pipeline.decoding.fast import inverted_cmyk_as_rgb
from pipeline.decoding.resize import resize_channels, resize_plane
from pmc_clip.transforms import to_rgb

SIZE = 224
CROP = TrainImages(SIZE).crop
Job = tuple[bytes, list[float]]
Variant = Callable[[bytes, list[float]], np.ndarray]


def stage(decode: str) -> Variant:
    images = TrainImages(SIZE, decode=decode)

    def run(data: bytes, uniforms: list[float]) -> np.ndarray:
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        images(memoryview(data), uniforms, out)
        return out

    return run


@dataclass(frozen=True)
class Steps:
    """The fast path with some of its steps; with none of them it is what it was before."""

    channels_last: bool = False
    columns_first: bool = False
    grey_plane: bool = False
    cmyk_last: bool = False
    paste_on_white: bool = False

    def __call__(self, data: bytes, uniforms: list[float]) -> np.ndarray:
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        pixels = self._decoded(data)
        crop = CROP(pixels.shape[1], pixels.shape[0], uniforms)
        if pixels.shape[2] == 1:
            for channel, grey in enumerate([resize_plane(pixels[..., 0], crop, SIZE)] * 3):
                out[..., channel] = grey
            return out
        resized = resize_channels(pixels, crop, SIZE) if self.columns_first else self._at_once(pixels, crop)
        out[:] = resized if resized.shape[2] == 3 else inverted_cmyk_as_rgb(resized)
        return out

    def _decoded(self, data: bytes) -> np.ndarray:
        kept = {"YCbCr": "RGB", "Gray": "GRAY" if self.grey_plane else "RGB"}
        kept |= {"CMYK": "CMYK"} if self.cmyk_last else {}
        try:
            channels = kept.get(simplejpeg.decode_jpeg_header(data)[2])
            if channels:
                return simplejpeg.decode_jpeg(data, channels)
        except ValueError:
            pass  # no JPEG
        image = Image.open(io.BytesIO(data))
        if image.mode == "L" and self.grey_plane:
            return np.array(image)[..., None]
        if image.has_transparency_data and not self.paste_on_white:
            image = image.convert("RGBA")
            return np.array(
                Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            )
        return np.array(to_rgb(image))

    def _at_once(self, pixels: np.ndarray, crop: Crop) -> np.ndarray:
        left, top, width, height = crop
        view = torch.from_numpy(pixels[top : top + height, left : left + width])
        if self.channels_last:
            image = view.contiguous()[None].permute(0, 3, 1, 2)
        else:
            image = view.permute(2, 0, 1)[None]
        resized = F.interpolate(image, (SIZE, SIZE), mode="bicubic", antialias=True)
        return resized[0].permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class Reduced:
    """All steps, with JPEGs reduced only where `spare` times the pixels wanted are left; fast_dct: as well as
    libjpeg's faster, coarser inverse transform.
    """

    spare: int = 1
    fast_dct: bool = False

    def __call__(self, data: bytes, uniforms: list[float]) -> np.ndarray:
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return FAST(data, uniforms)
        crop = CROP(width, height, uniforms)
        factor = reduction(crop, SIZE * self.spare)
        if colours not in ("YCbCr", "Gray"):
            return FAST(data, uniforms)
        pixels = simplejpeg.decode_jpeg(
            data,
            "RGB" if colours == "YCbCr" else "GRAY",
            fastdct=self.fast_dct,
            min_height=-(-height // factor),
            min_width=-(-width // factor),
        )
        left, top, crop_width, crop_height = (edge // factor for edge in crop)
        within = left, top, crop_width, crop_height
        if pixels.shape[2] == 1:
            return np.repeat(resize_plane(pixels[..., 0], within, SIZE)[..., None], 3, axis=2)
        return resize_channels(pixels, within, SIZE)


FAST = stage("fast")
BEFORE = "before: libjpeg-turbo, torch's bicubic"
VARIANTS: dict[str, Variant] = {
    "Pillow as published (published)": stage("published"),
    "Pillow, colours first (exact)": stage("exact"),
    BEFORE: Steps(),
    "+ pixels stay channels last": Steps(True),
    "+ columns resized first, crop not copied": Steps(True, True),
    "+ grey as one channel": Steps(True, True, True),
    "+ CMYK to RGB after resizing": Steps(True, True, True, True),
    "+ transparency pasted on white": Steps(True, True, True, True, True),
    "+ JPEGs reduced down to twice the crop": Reduced(spare=2),
    "+ JPEGs reduced down to the crop (fast)": FAST,
    "not used: libjpeg's fast inverse transform": Reduced(fast_dct=True),
}


def kind_of(data: bytes) -> str:
    image = Image.open(io.BytesIO(data))
    return f"{image.format} {image.mode}"


def pool_times(variant: Variant, jobs: list[Job], pool: ThreadPoolExecutor) -> tuple[float, float]:
    """Wall and CPU seconds for all jobs."""
    wall, cpu = time.perf_counter(), time.process_time()
    list(pool.map(lambda job: variant(*job), jobs))
    return time.perf_counter() - wall, time.process_time() - cpu


def compare_variants(jobs: list[Job], rounds: int, threads: int) -> None:
    pools = {
        count: ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
        for count in sorted({1, threads})
    }
    exact = [stage("exact")(*job).astype(int) for job in jobs]
    taken: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for _ in range(rounds):
        for name, variant in VARIANTS.items():
            for count, pool in pools.items():
                taken[name, count].append(pool_times(variant, jobs, pool))
    print(f"\n{'':<50}" + "".join(f"{count:>4} thr./s" for count in pools), end="")
    print(f"{'CPU ms':>9}{'before/this':>13}{'mean':>8}{'worst':>7}")
    for name, variant in VARIANTS.items():
        rates = [len(jobs) / statistics.median(wall for wall, _ in taken[name, count]) for count in pools]
        cpu = [cpu for _, cpu in taken[name, threads]]
        ratio = statistics.median(
            before / ours for (_, before), ours in zip(taken[BEFORE, threads], cpu, strict=True)
        )
        off = [np.abs(variant(*job) - pixels).mean() for job, pixels in zip(jobs, exact, strict=True)]
        print(f"{name:<50}" + "".join(f"{rate:>10,.0f}" for rate in rates), end="")
        print(f"{1000 * statistics.median(cpu) / len(jobs):>9.2f}{ratio:>13.2f}", end="")
        print(f"{np.mean(off):>8.3f}{max(off):>7.2f}")
    for pool in pools.values():
        pool.shutdown()


def compare_kinds(jobs: list[Job], rounds: int) -> None:
    """CPU time by kind of image, on one thread."""
    kinds = [kind_of(data) for data, _ in jobs]
    before, fast = np.empty((rounds, len(jobs))), np.empty((rounds, len(jobs)))
    for turn in range(rounds):
        for number, job in enumerate(jobs):
            for variant, times in ((VARIANTS[BEFORE], before), (FAST, fast)):
                begin = time.thread_time()
                variant(*job)
                times[turn, number] = 1000 * (time.thread_time() - begin)
    before, fast = np.median(before, axis=0), np.median(fast, axis=0)
    print(f"\n{'':<12}{'images':>7}{'of fast time':>14}{'before, ms':>12}{'fast, ms':>10}{'ratio':>7}")
    for kind in sorted(set(kinds), key=lambda kind: -fast[np.array(kinds) == kind].sum()):
        mine = np.array(kinds) == kind
        ratio = before[mine].sum() / fast[mine].sum()
        print(f"{kind:<12}{mine.sum():>7}{fast[mine].sum() / fast.sum():>14.1%}", end="")
        print(f"{before[mine].mean():>12.2f}{fast[mine].mean():>10.2f}{ratio:>7.2f}")
    print(f"{'all':<12}{len(jobs):>7}{'':>14}{before.mean():>12.2f}{fast.mean():>10.2f}", end="")
    print(f"{before.sum() / fast.sum():>7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True, help="folder of images; all files in it are taken")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are reported")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    files = sorted(file for file in Path(args.images).iterdir() if file.is_file())
    jobs = [(file.read_bytes(), rng.random(CROP_UNIFORMS).tolist()) for file in files]
    print(f"{len(jobs)} images, crops of {SIZE} pixels, medians of {args.rounds} interleaved rounds")
    compare_variants(jobs, args.rounds, args.threads)
    compare_kinds(jobs, args.rounds)


if __name__ == "__main__":
    main()
