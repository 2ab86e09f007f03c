"""What figures are of: data, weights, preprocessing and software, as metrics.json tells it."""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.evaluation.subject import Subject
from pipeline.model_fingerprint import model_fingerprint
from pipeline.open_model import OpenedModel

_PACKAGES = ("pmc-clip-stream", "torch", "torchvision", "transformers", "tokenizers", "pillow", "numpy")


def describe_evaluation(data: str, opened: OpenedModel, subject: Subject) -> dict[str, Any]:
    """As plain JSON values."""
    vision, text = subject.model.config.vision_cfg, subject.model.config.text_cfg
    return {
        "data": data,
        "fingerprint": subject.dataset.manifest.fingerprint,
        "checkpoint": opened.source,
        "checkpoint_sha256": _sha256(opened.source),
        "model_fingerprint": model_fingerprint(subject.model, subject.tokenizer),
        **opened.progress,
        "pairs": len(subject.dataset),
        "preprocessing": {
            "decode": subject.decode,
            "image_size": vision.image_size,
            "mean": list(vision.mean),
            "std": list(vision.std),
            "tokenizer": subject.tokenizer.fingerprint(),
            "context_length": text.context_length,
            "mask_padding": text.mask_padding,
        },
        "device": subject.device.type,
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _sha256(source: str) -> str | None:
    """The sha256 of a checkpoint's file; None for a folder, a tag or an address."""
    path = Path(source)
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
