"""Features of pieces: a loader's batches through the model, put together piece by piece, and written."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from pipeline.embedding.manifest import EmbeddingsManifest, LeftOut, Part
from pipeline.embedding.pieces import Piece, write_piece
from pipeline.job_progress import JobProgress
from pipeline.loader import Batch, Loader
from pipeline.model_input import make_text
from pmc_clip import PMCCLIP
from shards import Folder


class NoImages:
    """An image stage for captions alone: nothing is decoded."""

    size, uniforms = 1, 0

    def __call__(self, data: memoryview, uniforms: Sequence[float], out: np.ndarray) -> None:
        """Leave `out` as it is."""


@torch.no_grad()
def embed_batch(
    model: PMCCLIP, batch: Batch, parts: Sequence[Part], device: torch.device
) -> dict[Part, torch.Tensor]:
    """Features of a batch [B, D] float32, of length 1, on the device."""
    features: dict[Part, torch.Tensor] = {}
    if "image" in parts:
        features["image"] = model.encode_image(batch.images_on(device), normalize=True).float()
    if "text" in parts:
        assert batch.tokens is not None
        tokens, layout = make_text(
            batch.tokens, None, device, mask_padding=model.config.text_cfg.mask_padding
        )
        features["text"] = model.encode_text(tokens, normalize=True, layout=layout).float()
    return features


def write_pieces(
    model: PMCCLIP,
    loader: Loader,
    pieces: Sequence[int],
    folder: Folder,
    manifest: EmbeddingsManifest,
    device: torch.device,
    progress: JobProgress,
) -> None:
    """Write the pieces of these numbers, whose samples the loader gives in order. Each appears when its last
    sample is through; writing goes on beside the work on the next.
    """
    wanted = iter(pieces)
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:
        for piece in _pieces(model, loader, manifest, device, [manifest.span(number) for number in pieces]):
            if writing:
                writing.result()
            writing = writer.submit(write_piece, folder, next(wanted), piece, manifest.format)
            progress.advance(len(piece.numbers) + len(piece.left_out))
        if writing:
            writing.result()


def _pieces(
    model: PMCCLIP,
    loader: Loader,
    manifest: EmbeddingsManifest,
    device: torch.device,
    spans: Sequence[tuple[int, int]],
) -> Iterator[Piece]:
    """The piece of each span, in order: batches may end anywhere in them."""
    ends = iter(stop for _, stop in spans)
    growing = _GrowingPiece(next(ends, 0))
    for batch in loader:
        features = embed_batch(model, batch, manifest.parts, device)
        start = 0
        while start < len(batch.numbers):
            stop = int(np.searchsorted(batch.numbers, growing.stop))
            growing.add(batch, features, slice(start, stop))
            start = stop
            if growing.last == growing.stop - 1:
                yield growing.finish(manifest)
                growing = _GrowingPiece(next(ends, 0))


class _GrowingPiece:
    """A piece in the making: the rows that were computed so far, up to sample `stop`."""

    def __init__(self, stop: int) -> None:
        self.stop, self.last = stop, -1
        self._numbers: list[int] = []
        self._keys: list[str] = []
        self._captions: list[str] = []
        self._features: list[dict[Part, torch.Tensor]] = []
        self._left_out: list[LeftOut] = []

    def add(self, batch: Batch, features: Mapping[Part, torch.Tensor], rows: slice) -> None:
        """Take over some rows of a batch, but for those that were left out."""
        kept = []
        for row in range(len(batch.numbers))[rows]:
            self.last = int(batch.numbers[row])
            if row in batch.left_out:
                self._left_out.append(LeftOut(self.last, batch.left_out[row]))
                continue
            kept.append(row)
            self._numbers.append(self.last)
            self._keys.append(batch.keys[row])
            self._captions.append(batch.captions[row])
        self._features.append({part: tensor[kept] for part, tensor in features.items()})

    def finish(self, manifest: EmbeddingsManifest) -> Piece:
        """The piece, its features in the form that they are stored in."""
        return Piece(
            np.array(self._numbers, np.int64),
            self._keys,
            self._captions,
            {
                part: torch.cat([rows[part] for rows in self._features]).cpu().numpy().astype(manifest.dtype)
                for part in manifest.parts
            },
            self._left_out,
        )
