"""Where files are kept that were fetched once."""

import os
from pathlib import Path

from pmc_clip.errors import ModelError


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/pmc-clip-stream/checkpoints`, or `~/.cache/…`; it need not exist."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache).absolute() / "pmc-clip-stream" / "checkpoints"


def make_folder(folder: Path) -> None:
    """Make a folder in the cache; ModelError where the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"{folder}: checkpoints cannot be kept here ({error.strerror}): name a folder that you may write "
            "to in the environment variable XDG_CACHE_HOME"
        ) from error
