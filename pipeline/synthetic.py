"""The demo's data set: figure-like pictures with captions that say what is in them, drawn the same every
time.

It has PMC-OA's shape (file names with PMC ids, several figures of an article in neighbouring rows). Whatever
a caption names can be seen in the middle square at 64 pixels, which is what a tiny model sees of a figure.
"""

import csv
import io
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

COLOURS = {
    "red": (205, 50, 45),
    "green": (50, 150, 70),
    "blue": (55, 90, 200),
    "orange": (240, 140, 30),
    "purple": (130, 70, 170),
    "brown": (130, 85, 50),
    "cyan": (40, 180, 195),
    "magenta": (215, 60, 160),
}
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
CORNERS = {
    "upper left": (0.28, 0.28),
    "upper right": (0.72, 0.28),
    "lower left": (0.28, 0.72),
    "lower right": (0.72, 0.72),
    "central": (0.5, 0.5),
}
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
EDGE = 0.06  # share of a side kept clear of whatever is counted: evaluation crops to the middle square

Drawing = tuple[Image.Image, str]


def _canvas(rng: random.Random, colour: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    width = rng.randrange(165, 215)
    return Image.new("RGB", (width, round(width * rng.uniform(0.93, 1.07))), colour)


def _two_colours(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(list(COLOURS), 2)
    return first, second


def _shade(colour: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, round(channel * factor))) for channel in colour)
    return red, green, blue


def cells(rng: random.Random) -> Drawing:
    """A fluorescence field: round cells of one colour and, often, one of another."""
    (name, other), count = _two_colours(rng), rng.randrange(1, 9)
    image = _canvas(rng, (12, 12, 20))
    draw = ImageDraw.Draw(image)
    large = rng.random() < 0.5
    radius = image.width // 9 if large else image.width // 15
    places = [(x, y) for x in range(4) for y in range(3)]
    odd = rng.random() < 0.5
    for index, (x, y) in enumerate(rng.sample(places, count + odd)):
        centre = (
            (x + 0.5) * image.width / 4 + rng.uniform(-4, 4),
            (y + 0.5) * image.height / 3 + rng.uniform(-4, 4),
        )
        colour = COLOURS[other if index == count else name]
        for share, factor in ((1.0, 0.7), (0.65, 1.0), (0.3, 1.35)):
            reach = radius * share
            box = [centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach]
            draw.ellipse(box, fill=_shade(colour, factor))
    size, plural = ("large" if large else "small"), "s" if count > 1 else ""
    extra = f" and a single {other} cell" if odd else ""
    caption = rng.choice(
        [
            f"Fluorescence microscopy showing {NUMBERS[count - 1]} {size} {name} cell{plural}{extra}.",
            f"Confocal image of {NUMBERS[count - 1]} {size} cell{plural} stained {name}{extra} on a dark "
            "ground.",
        ]
    )
    return image.filter(ImageFilter.GaussianBlur(0.7)), caption


def bars(rng: random.Random) -> Drawing:
    """A bar chart of one colour whose tallest and shortest bars are named."""
    name, count = rng.choice(list(COLOURS)), rng.randrange(3, 7)
    tallest, shortest = rng.sample(range(count), 2)
    heights = [rng.uniform(0.38, 0.62) for _ in range(count)]
    heights[tallest], heights[shortest] = 0.95, 0.12
    image = _canvas(rng)
    draw = ImageDraw.Draw(image)
    left, bottom, top = 24, image.height - 20, 14
    draw.line([left, top, left, bottom, image.width - 8, bottom], fill=(0, 0, 0), width=2)
    step = (image.width - left - 16) / count
    for index in range(count):
        height = (bottom - top) * heights[index]
        x = left + 6 + index * step
        draw.rectangle(
            [x, bottom - height, x + step * 0.65, bottom - 1], fill=COLOURS[name], outline=(0, 0, 0)
        )
    high, low = ORDINALS[tallest], ORDINALS[shortest]
    caption = rng.choice(
        [
            f"Bar chart with {NUMBERS[count - 1]} {name} bars; the {high} is highest, the {low} lowest.",
            f"Mean expression in {NUMBERS[count - 1]} groups ({name} bars), greatest in the {high} group and "
            f"least in the {low}.",
        ]
    )
    return image, caption


def curves(rng: random.Random) -> Drawing:
    """A line plot of two curves with named colours and trends."""
    names = _two_colours(rng)
    trends = rng.sample(["rises", "falls", "peaks in the middle", "dips in the middle", "stays flat"], 2)
    image = _canvas(rng)
    draw = ImageDraw.Draw(image)
    left, bottom, top = 20, image.height - 18, 12
    draw.line([left, top, left, bottom, image.width - 8, bottom], fill=(0, 0, 0), width=2)
    shapes: dict[str, Callable[[float], float]] = {
        "rises": lambda t: 0.1 + 0.75 * t,
        "falls": lambda t: 0.85 - 0.75 * t,
        "peaks in the middle": lambda t: 0.1 + 0.75 * math.sin(math.pi * t),
        "dips in the middle": lambda t: 0.85 - 0.75 * math.sin(math.pi * t),
        "stays flat": lambda t: 0.5,
    }
    for name, trend in zip(names, trends, strict=True):
        points = []
        for step in range(24):
            t = step / 23
            y = shapes[trend](t) + rng.uniform(-0.02, 0.02)
            points.append((left + 4 + t * (image.width - left - 16), bottom - y * (bottom - top)))
        draw.line(points, fill=COLOURS[name], width=4)
    caption = rng.choice(
        [
            f"Line plot: the {names[0]} curve {trends[0]} while the {names[1]} curve {trends[1]}.",
            f"Time course of two groups; {names[0]} {trends[0]} and {names[1]} {trends[1]}.",
        ]
    )
    return image, caption


def blot(rng: random.Random) -> Drawing:
    """A Western blot: rows of bands, strongest in one lane and absent from another."""
    lanes, rows, dark = rng.randrange(3, 8), rng.randrange(1, 4), rng.random() < 0.5
    strong, absent = rng.sample(range(lanes), 2)
    ground, weak, band = (45, 105, 245) if dark else (210, 150, 10)
    image = _canvas(rng, (ground,) * 3)
    draw = ImageDraw.Draw(image)
    step = image.width * (1 - 2 * EDGE) / lanes
    for row in range(rows):
        y = image.height * (row + 1) / (rows + 1)
        for lane in range(lanes):
            if lane == absent:
                continue
            shade, height = (band, 9) if lane == strong else (weak, 5)
            x = image.width * EDGE + (lane + 0.5) * step
            draw.ellipse([x - step * 0.38, y - height, x + step * 0.38, y + height], fill=(shade,) * 3)
    film, row_words = ("dark" if dark else "light"), f"{NUMBERS[rows - 1]} row{'s' * (rows > 1)} of bands"
    caption = rng.choice(
        [
            f"Western blot on a {film} film, {NUMBERS[lanes - 1]} lanes with {row_words}; strongest in the "
            f"{ORDINALS[strong]} lane, absent from the {ORDINALS[absent]}.",
            f"Immunoblot ({film} film) of {NUMBERS[lanes - 1]} samples, {row_words}: increased in lane "
            f"{strong + 1}, no signal in lane {absent + 1}.",
        ]
    )
    return image.filter(ImageFilter.GaussianBlur(1.2)).convert("L"), caption


def scan(rng: random.Random) -> Drawing:
    """A grayscale slice with one or two lesions, each bright or dark, large or small, in a named place."""
    modality = rng.choice(["CT", "MRI"])
    image = _canvas(rng, (0, 0, 0))
    draw = ImageDraw.Draw(image)
    width, height = image.size
    rim = (235,) * 3 if modality == "CT" else (120,) * 3
    draw.ellipse([width * 0.06, height * 0.06, width * 0.94, height * 0.94], fill=rim)
    draw.ellipse([width * 0.1, height * 0.1, width * 0.9, height * 0.9], fill=(95,) * 3)
    for _ in range(12):
        x, y = rng.uniform(0.2, 0.75) * width, rng.uniform(0.2, 0.75) * height
        draw.ellipse([x, y, x + width * 0.12, y + height * 0.1], fill=(rng.randrange(80, 110),) * 3)
    lesions = []
    for corner in rng.sample(list(CORNERS), rng.choice([1, 2, 2, 2])):
        bright, large = rng.random() < 0.5, rng.random() < 0.5
        x, y = (share * size for share, size in zip(CORNERS[corner], image.size, strict=True))
        radius = width * (0.13 if large else 0.07)
        box = [x - radius, y - radius, x + radius, y + radius]
        draw.ellipse(box, fill=(250,) * 3 if bright else (5,) * 3)
        lesions.append((f"{'large' if large else 'small'} {'hyper' if bright else 'hypo'}dense", corner))
    caption = rng.choice(
        [
            f"Axial {modality} showing "
            + " and ".join(f"a {k} lesion in the {c} region" for k, c in lesions),
            f"{modality} slice: " + ", ".join(f"{k} mass in the {c} part" for k, c in lesions),
        ]
    )
    return image.filter(ImageFilter.GaussianBlur(1.5)).convert("L"), caption + "."


def histology(rng: random.Random) -> Drawing:
    """A stained section: many or few nuclei on stroma of a colour, with a number of open glands."""
    grounds = {
        "pink": (235, 175, 200),
        "yellow": (240, 225, 150),
        "pale green": (190, 225, 190),
        "pale blue": (180, 205, 235),
    }
    stain, nuclei = rng.choice(list(grounds)), rng.choice(list(COLOURS))
    dense, holes = rng.random() < 0.5, rng.randrange(4)
    image = _canvas(rng, grounds[stain])
    draw = ImageDraw.Draw(image)
    for _ in range(110 if dense else 24):
        x, y, radius = rng.uniform(0, image.width), rng.uniform(0, image.height), rng.uniform(3, 6)
        draw.ellipse([x - radius, y - radius * 0.8, x + radius, y + radius * 0.8], fill=COLOURS[nuclei])
    places = [place for corner, place in CORNERS.items() if corner != "central"]
    for x_share, y_share in rng.sample(places, holes):
        x, y, radius = x_share * image.width, y_share * image.height, image.width * rng.uniform(0.11, 0.15)
        box = [x - radius, y - radius, x + radius, y + radius]
        draw.ellipse(box, fill=(255, 255, 255), outline=COLOURS[nuclei], width=5)
    amount = "densely packed" if dense else "sparse"
    glands = f"{NUMBERS[holes - 1]} open gland{'s' * (holes > 1)}" if holes else "no glands"
    caption = rng.choice(
        [
            f"Histology: {amount} {nuclei} nuclei in {stain} stroma with {glands}.",
            f"Stained section with {glands} and {amount} nuclei ({nuclei}) on a {stain} background.",
        ]
    )
    return image, caption


def scatter(rng: random.Random) -> Drawing:
    """A scatter plot with a named correlation and two named groups."""
    names, trend = _two_colours(rng), rng.choice(["positive", "negative", "no"])
    image = _canvas(rng)
    draw = ImageDraw.Draw(image)
    left, bottom, top = 18, image.height - 16, 10
    draw.line([left, top, left, bottom, image.width - 8, bottom], fill=(0, 0, 0), width=2)
    count = rng.choice([12, 40])
    for _ in range(count):
        t = rng.random()
        y = {"positive": t, "negative": 1 - t, "no": rng.random()}[trend] + rng.uniform(-0.08, 0.08)
        x = left + 6 + t * (image.width - left - 26)
        y = bottom - (0.08 + 0.84 * min(1, max(0, y))) * (bottom - top)
        group = names[0] if t < 0.5 else names[1]
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=COLOURS[group])
    amount = "many" if count > 20 else "few"
    caption = rng.choice(
        [
            f"Scatter plot of {amount} samples with {trend} correlation, {names[0]} on the left "
            f"and {names[1]} on the right.",
            f"{trend.capitalize()} correlation in a scatter plot ({amount} points; low values "
            f"{names[0]}, high {names[1]}).",
        ]
    )
    return image, caption


def trace(rng: random.Random) -> Drawing:
    """An electrocardiogram-like trace with a number of beats."""
    name, beats, inverted = rng.choice(list(COLOURS)), rng.randrange(2, 9), rng.random() < 0.5
    grid = rng.choice(["pink", "gray"])
    image = _canvas(rng, (255, 240, 240) if grid == "pink" else (240, 240, 240))
    draw = ImageDraw.Draw(image)
    for offset in range(0, max(image.size), 14):
        colour = (240, 190, 190) if grid == "pink" else (200, 200, 200)
        draw.line([offset, 0, offset, image.height], fill=colour)
        draw.line([0, offset, image.width, offset], fill=colour)
    middle, sign = image.height / 2, 1 if inverted else -1
    left, step = image.width * EDGE, image.width * (1 - 2 * EDGE) / beats
    points = []
    for beat in range(beats):
        for share, rise in ((0.0, 0), (0.35, 0), (0.45, 0.75), (0.55, -0.25), (0.65, 0), (1.0, 0)):
            points.append((left + (beat + share) * step, middle + sign * rise * middle))
    draw.line(points, fill=COLOURS[name], width=3)
    shape = "inverted" if inverted else "upright"
    caption = rng.choice(
        [
            f"Electrocardiogram on {grid} paper, {NUMBERS[beats - 1]} {shape} beats drawn in {name}.",
            f"ECG trace ({name} line, {grid} grid) with {NUMBERS[beats - 1]} {shape} complexes.",
        ]
    )
    return image, caption


KINDS: tuple[Callable[[random.Random], Drawing], ...] = (
    cells,
    bars,
    curves,
    blot,
    scan,
    histology,
    scatter,
    trace,
)


def write_synthetic_dataset(folder: Path, samples: Mapping[str, int], seed: int = 0) -> None:
    """Draw `samples[split]` figures for each split into `folder/images`, and a table `folder/SPLIT.csv` for
    each.

    Tables have the columns image, caption and pmcid. An article has one to four figures and is in one split
    only. The same arguments give the same bytes.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    article = 4_000_000
    for split, count in samples.items():
        rng = random.Random(f"{seed} {split}")
        rows: list[dict[str, str]] = []
        while len(rows) < count:
            article += rng.randrange(1, 90)
            for figure in range(1, min(rng.randrange(1, 5), count - len(rows)) + 1):
                image, caption = rng.choice(KINDS)(rng)
                name = f"PMC{article}_Fig{figure}_{rng.randrange(1, 9)}"
                row = {"image": _save(image, folder / "images", name, rng), "caption": caption}
                rows.append({**row, "pmcid": f"PMC{article}"})
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as table:
            writer = csv.DictWriter(table, ["image", "caption", "pmcid"])
            writer.writeheader()
            writer.writerows(rows)


def _save(image: Image.Image, folder: Path, name: str, rng: random.Random) -> str:
    """Write a picture, one in eight as PNG; the file's name."""
    out = io.BytesIO()
    as_png = rng.random() < 0.125
    image.save(out, "PNG") if as_png else image.save(out, "JPEG", quality=88)
    file = f"{name}.{'png' if as_png else 'jpg'}"
    (folder / file).write_bytes(out.getvalue())
    return file
