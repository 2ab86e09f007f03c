"""Where images come from, and whether they are whole."""

import io
import os
import stat
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from shards import UsageError

# Extension by true format: what is in the file decides, not what its name says.
EXTENSIONS = {
    "JPEG": "jpg",
    "PNG": "png",
    "GIF": "gif",
    "WEBP": "webp",
    "TIFF": "tif",
    "BMP": "bmp",
    "MPO": "jpg",
}


class Rejected(Exception):
    """A row that cannot become a sample; the message is the reason, the same words for the same reason."""


class ImageFolder:
    """Images in a folder, by the names that a table gives them; never reads outside of it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))

    def read(self, name: str) -> bytes:
        """The bytes of an image; Rejected where there is none or the name leads out of the folder."""
        try:
            path = Path(os.path.realpath(self.root / name))
            if not path.is_relative_to(self.root):
                raise Rejected("outside the image folder")
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe, say, could be read forever
                raise Rejected("not a file")
            return path.read_bytes()
        except FileNotFoundError:
            raise Rejected("missing") from None
        except (OSError, ValueError) as error:  # a name with a null byte, or longer than the system allows
            raise Rejected(f"unreadable ({getattr(error, 'strerror', None) or error})") from error


def choose_image_folder(images: str | None, table: Path, first_names: list[str]) -> ImageFolder:
    """The folder that `--images` names, or else the table's own or its `images/`: the one that holds the
    first rows.
    """
    if images:
        if not Path(images).is_dir():
            raise UsageError(f"{images}: no such folder of images")
        return ImageFolder(Path(images))
    candidates = [table.parent, table.parent / "images"]
    found = [sum(os.path.isfile(folder / name) for name in first_names) for folder in candidates]
    if not any(found):
        raise UsageError(
            f"none of the first {len(first_names)} images of {table} (such as {first_names[0]!r}) is in "
            f"{candidates[0]} or {candidates[1]}: say where they are with --images FOLDER"
        )
    return ImageFolder(candidates[found.index(max(found))])


def verified_extension(data: bytes) -> str:
    """Decode an image fully and return the extension of its true format; Rejected where it is not whole."""
    if not data:
        raise Rejected("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data)) as image:
                extension = EXTENSIONS.get(image.format or "")
                if not extension:
                    raise Rejected(f"format {image.format} is not supported")
                image.load()
        except UnidentifiedImageError:
            raise Rejected("not an image") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise Rejected("too many pixels") from None
        except (Rejected, MemoryError):  # memory is this machine's trouble, not the image's
            raise
        # Decoders raise nearly anything on a broken image: OSError, SyntaxError, struct.error, zlib.error, …
        except Exception as error:
            raise Rejected("truncated" if "truncated" in str(error) else "broken image") from error
    return extension
