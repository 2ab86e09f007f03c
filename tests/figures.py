"""Shards of small random figures, for tests of what loads them."""

import io
import json
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from shards import Folder, MemberNames, write_manifest, write_shard


def write_figures(
    folder: "Path | str", count: int, *, side: int = 40, captions: int = 1, broken: Collection[int] = ()
) -> str:
    """Write `count` samples to one shard; the folder's address. Their columns are `licence` and `row`, and
    `note` in every tenth; each has `captions` captions, and those of `broken` are no images.
    """

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for number in range(count):
            picture = io.BytesIO()
            pixels = np.random.default_rng(number).integers(0, 255, (side, side + 7, 3), np.uint8)
            Image.fromarray(pixels).save(picture, "JPEG")
            columns: dict[str, object] = {"licence": f"CC {number % 3}", "row": number}
            if number % 10 == 0:
                columns["note"] = "seen"
            lines = "\n".join(f"caption {line} of {number}" for line in range(captions))
            yield (
                f"{number:06d}",
                {
                    "jpg": b"\xff\xd8 broken" if number in broken else picture.getvalue(),
                    "txt": lines.encode(),
                    "json": json.dumps(columns).encode(),
                },
            )

    target = Folder(folder)
    names = MemberNames(caption_lines=captions > 1)
    write_manifest(target, [write_shard(target, "d-000000.tar", samples())], {}, member_names=names)
    return target.address


def huge_png() -> bytes:
    """A small file that announces 100,000 x 100,000 pixels: a decompression bomb."""
    out = io.BytesIO()
    Image.new("RGB", (20, 20)).save(out, "PNG")
    data = bytearray(out.getvalue())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)
