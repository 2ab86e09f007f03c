"""What figures are of: data, weights, preprocessing and software, as metrics.json tells it."""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.evaluation.subject import Subject
from pipeline.open_model import OpenedModel

_PACKAGES = ("pmc-clip-stream", "torch", "torchvision", "transformers", "tokenizers", "pillow", "numpy")


def describe_evaluation(data: str, opened: OpenedModel, subject: Subject) -> dict[str, Any]:
    """As plain JSON values."""
    vision, text = subject.model.config.vision_cfg, subject.model.config.text_cfg
    return {
        "data": data,
        "fingerprint": subject.dataset.manifest.fingerprint,
        "checkpoint": opened.source,
        "checkpoint_sha256": weights_sha256(opened),
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


def weights_sha256(opened: OpenedModel) -> str:
    """The sha256 of the checkpoint's file; of weights that are not one file here, of the weights by name."""
    path = Path(opened.source)
    digest = hashlib.sha256()
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    for name, tensor in sorted(opened.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).numpy())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
