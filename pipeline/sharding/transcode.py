"""Images checked and, where it is asked for, made smaller and stored in another format, with one decode."""

import io
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import PIL
from PIL import Image, ImageCms

from pipeline.sharding.image_check import CheckedImage, ImageRules, check_image, open_checked
from pipeline.sharding.rows import Rejected
from pmc_clip.transforms import to_rgb
from shards import UsageError

_GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # and I;16 in its byte orders
_LONGEST_SIDE = {"jpg": 65_535, "webp": 16_383}  # pixels; what the formats can hold
_EXTENSION = {"jpeg": "jpg", "webp": "webp"}


@dataclass(frozen=True)
class Transcoding:
    """How images are stored: without a size or format, as they came."""

    resize: int | None = None  # pixels of the shorter side; smaller images are never enlarged
    format: Literal["jpeg", "webp"] | None = None  # None: JPEG, PNG, WebP stay what they are, others turn PNG
    quality: int = 95  # of JPEG and WebP

    def check(self) -> None:
        """Raise UsageError where values are out of range."""
        if self.resize is not None and self.resize < 1:
            raise UsageError(f"--resize {self.resize}: it must be at least 1 pixel")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"--quality {self.quality}: it must be from 1 to 100")
        if self.changes_nothing and self.quality != Transcoding.quality:
            raise UsageError("--quality is that of images encoded again: add --resize or --format")

    @property
    def changes_nothing(self) -> bool:
        """Whether images stay as they came."""
        return self.resize is None and self.format is None

    @property
    def identity(self) -> dict[str, Any]:
        """What the bytes of the images follow from: encoders of another version make others."""
        if self.changes_nothing:
            return {}
        return {name: value for name, value in asdict(self).items() if value is not None} | {
            "pillow": PIL.__version__
        }


def process_image(
    data: bytes, rules: ImageRules, transcoding: Transcoding = Transcoding()
) -> tuple[bytes, CheckedImage]:
    """The bytes to store and what they hold; Rejected where the image cannot be taken.

    An image that needs no change (small enough, of the wanted format, RGB or grey, its colours sRGB) keeps
    its bytes. The rules' sizes are held against the image as it came. Of an animation the first picture is
    kept; the turn that EXIF data ask for is not made, as no reader of the shards makes it; metadata go.
    """
    if transcoding.changes_nothing:
        return data, check_image(data, rules)
    with open_checked(data, rules) as (image, checked):
        extension = _stored_extension(checked.extension, transcoding)
        if extension != checked.extension or _needs_change(image, transcoding):
            picture = _resized(_flat_srgb(image), transcoding.resize)
            if max(picture.size) > _LONGEST_SIDE.get(extension, max(picture.size)):
                raise Rejected(f"sides too long for {extension}")
            encoded = _encode(picture, extension, transcoding.quality)
            mode = "RGB" if extension == "webp" else picture.mode  # WebP knows no grey
            return encoded, CheckedImage(extension, mode, *picture.size)
    return data, check_image(data, rules)


def _stored_extension(extension: str, transcoding: Transcoding) -> str:
    if transcoding.format:
        return _EXTENSION[transcoding.format]
    return extension if extension in ("jpg", "png", "webp") else "png"


def _needs_change(image: Image.Image, transcoding: Transcoding) -> bool:
    too_large = transcoding.resize is not None and min(image.size) > transcoding.resize
    plain = image.mode in ("L", "RGB") and not image.has_transparency_data
    return too_large or not plain or _to_srgb(image.info.get("icc_profile"), image.mode) is not None


def _flat_srgb(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it, on white, in sRGB: mode L where it is grey, else RGB."""
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK" and _to_srgb(profile, "CMYK"):
        picture = image  # its profile knows the inks better than Pillow's own conversion
    else:
        picture = to_rgb(image)
        if image.mode in _GREY_MODES or image.mode.startswith("I;16"):
            picture = picture.convert("L")  # its channels are equal, so nothing is lost
    transform = _to_srgb(profile, picture.mode)
    if transform is None:
        return picture
    in_srgb = ImageCms.applyTransform(picture, transform)
    assert in_srgb is not None  # only a conversion in place gives none
    return in_srgb.convert("L") if picture.mode == "L" else in_srgb


@lru_cache(maxsize=64)
def _to_srgb(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion of a colour profile to sRGB; None where nothing is to do or the profile is broken."""
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        return ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _resized(picture: Image.Image, shorter: int | None) -> Image.Image:
    """The shorter side brought down to `shorter` pixels, the longer one rounded to the nearest pixel."""
    now = min(picture.size)
    if shorter is None or now <= shorter:
        return picture
    width, height = ((2 * side * shorter + now) // (2 * now) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _encode(picture: Image.Image, extension: str, quality: int) -> bytes:
    picture.info = {}  # Pillow would write some of it
    out = io.BytesIO()
    if extension == "jpg":
        picture.save(out, "JPEG", quality=quality, subsampling="4:4:4")
    elif extension == "webp":
        picture.save(out, "WEBP", quality=quality)
    else:
        picture.save(out, "PNG")
    return out.getvalue()
