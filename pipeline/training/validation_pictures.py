"""A few validation captions with the images that they find: the same ones each time, to see a model learn."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from pipeline.decoding.open_image import ImageError, opened
from pipeline.evaluation.gathering import gather
from pipeline.evaluation.subject import Subject

QUERIES, MATCHES, SIDE, EDGE = 4, 4, 128, 4
_OWN, _RIGHT, _OTHER = (90, 90, 90), (0, 150, 60), (215, 215, 215)  # the colours of the edges


@dataclass(frozen=True)
class FoundPictures:
    """Captions, and a row for each: its own image, then those that it finds, best first."""

    captions: list[str]
    picture: np.ndarray
    """[H, W, 3] uint8; the own image has a grey edge, among those found it has a green one."""

    def legend(self) -> str:
        """The captions, row by row, in Markdown."""
        return "\n".join(f"{number}. {caption}" for number, caption in enumerate(self.captions, start=1))


def find_pictures(subject: Subject) -> FoundPictures | None:
    """The pictures of a subject whose features are known, on the main process; every rank must call it."""
    dataset, topology = subject.dataset, subject.topology
    chosen = np.linspace(0, len(dataset) - 1, min(QUERIES, len(dataset))).astype(int).tolist()
    samples = [dataset.read_sample(number) for number in chosen]
    captions = [sample.caption for sample in samples]
    first = sum(gather(len(subject.features.image), topology)[: topology.rank])
    scores = subject.encode_captions(captions) @ subject.features.image.read().T
    best, places = scores.topk(min(MATCHES, scores.shape[1]), dim=1)
    parts = gather((best, places + first), topology)
    if not topology.is_main:
        return None
    best, order = torch.cat([part[0] for part in parts], dim=1).sort(dim=1, descending=True, stable=True)
    found = torch.cat([part[1] for part in parts], dim=1).gather(1, order)[:, :MATCHES]
    rows = []
    for number, sample, matches in zip(chosen, samples, found.tolist(), strict=True):
        tiles = [_tile(sample.image, _OWN)]
        for match in matches:
            tiles.append(_tile(dataset.read_sample(match).image, _RIGHT if match == number else _OTHER))
        rows.append(np.concatenate(tiles, axis=1))
    return FoundPictures(captions, np.concatenate(rows, axis=0))


def _tile(data: memoryview, edge: tuple[int, int, int]) -> np.ndarray:
    """An image made small, within an edge: [SIDE, SIDE, 3] uint8; of one that cannot be decoded, the edge."""
    tile = Image.new("RGB", (SIDE - 2 * EDGE, SIDE - 2 * EDGE), "white")
    try:
        with opened(data) as image:
            image = ImageOps.contain(image.convert("RGB"), tile.size)
        tile.paste(image, ((tile.width - image.width) // 2, (tile.height - image.height) // 2))
    except ImageError:
        pass
    return np.asarray(ImageOps.expand(tile, EDGE, edge))
