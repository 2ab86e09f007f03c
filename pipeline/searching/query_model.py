"""The model that a query goes through: the one that made the embeddings, and no other."""

import numpy as np
import torch

from pipeline.decode import EvalImages, ImageError
from pipeline.device import start_processes
from pipeline.embedding.manifest import EmbeddedModel
from pipeline.model_fingerprint import model_fingerprint
from pipeline.open_model import open_model
from pipeline.topology import Topology
from pmc_clip import ModelError
from shards import UsageError


class QueryModel:
    """Features of a query, of length 1: float32 [1, D]."""

    def __init__(self, told: EmbeddedModel, checkpoint: str | None, config: str | None) -> None:
        """told: what the embeddings say of their model; checkpoint, config: where it is now, if not there.

        Raises UsageError where it is another model, or not to be found.
        """
        source = checkpoint or told.checkpoint
        try:
            of_weights = config or (None if checkpoint else told.config)
            opened = open_model(source, of_weights, average=told.average)
        except (UsageError, ModelError) as error:
            if checkpoint:
                raise
            raise UsageError(
                f"{error}; the embeddings were made with it: if it lies elsewhere now, give --checkpoint"
            ) from error
        if (found := model_fingerprint(opened.model, opened.tokenizer)) != told.fingerprint:
            raise UsageError(
                f"{source}: another model ({found}) than the one that made the embeddings "
                f"({told.fingerprint}, from {told.checkpoint}), whose features are of another space: "
                "give that one, or embed the data anew"
            )
        self.title = opened.title
        self._tokenizer = opened.tokenizer
        self._device = start_processes(Topology())
        self._model = opened.on(self._device)
        self._images = EvalImages(told.image_size, "published" if told.decode == "published" else "exact")

    @torch.no_grad()
    def text(self, caption: str) -> np.ndarray:
        """Features of a caption."""
        tokens = self._tokenizer([caption]).to(self._device)
        return self._model.encode_text(tokens, normalize=True).float().cpu().numpy()

    @torch.no_grad()
    def image(self, data: bytes) -> np.ndarray:
        """Features of an image, prepared as those of the embeddings were; UsageError where it cannot be
        decoded.
        """
        pixels = np.empty((self._images.size, self._images.size, 3), np.uint8)
        try:
            self._images(memoryview(data), (), pixels)
        except ImageError as error:
            raise UsageError(f"the image cannot be decoded ({error}): give another") from error
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self._device)
        return self._model.encode_image(image, normalize=True).float().cpu().numpy()
