"""A figure and its caption as HTML that needs no other file."""

import base64
import io
from html import escape

from PIL import Image

from pmc_clip.transforms import to_rgb

THUMBNAIL = 220  # pixels of the longer side
CAPTION = 180  # characters shown; the rest is in the tooltip
_TOOLTIP = 5_000  # characters; captions of megabytes exist


def thumbnail_html(data: "bytes | memoryview") -> str:
    """An image, small, inside the page; raises what Pillow raises on one that it cannot decode."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (THUMBNAIL, THUMBNAIL))
        small = to_rgb(image)
        small.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    address = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
    return f'<img alt="figure" src="{address}">'


def caption_html(caption: str) -> str:
    """A caption, a long one cut, with the whole of it in its tooltip."""
    shown = caption if len(caption) <= CAPTION else caption[: CAPTION - 1] + "…"
    return f'<p class="caption" title="{escape(caption[:_TOOLTIP])}">{escape(shown)}</p>'
