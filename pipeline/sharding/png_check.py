"""Whether a PNG is whole, told without computing its pixels."""

import zlib
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

from PIL import Image

_SIGNATURE_LENGTH, _HEADER_LENGTH = 8, 13
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type; palettes (3) are left to Pillow
_FILTERS = 5


def surely_whole_png(image: Image.Image, data: bytes) -> bool:
    """Whether an opened PNG is certain to decode; False says only that a decoder must have the last word.

    Unpacking and the checksums find all damage; undoing the filters, most of the time of a decode, finds no
    more. Rare kinds (interlaced, with a palette or a transparent colour, with chunks after the pixels) are
    not judged here.
    """
    try:
        runs = [(kind, list(run)) for kind, run in groupby(_chunks(data), itemgetter(0))]
        kinds, header = [kind for kind, _ in runs], runs[0][1][0][1]
        if kinds[0] != b"IHDR" or kinds.count(b"IHDR") > 1 or len(runs[0][1]) > 1:
            return False
        if kinds[-2:] != [b"IDAT", b"IEND"] or kinds.count(b"IDAT") > 1 or len(header) != _HEADER_LENGTH:
            return False
        depth, colour_type, interlaced = header[8], header[9], header[12]
        if colour_type not in _CHANNELS or interlaced or b"tRNS" in kinds:
            return False
        row = 1 + (image.width * _CHANNELS[colour_type] * depth + 7) // 8  # the filter's number comes first
        unpacker = zlib.decompressobj()
        rows = unpacker.decompress(b"".join(body for _, body in runs[-2][1]), row * image.height + 1)
        return unpacker.eof and len(rows) == row * image.height and max(rows[::row]) < _FILTERS
    except (ValueError, zlib.error):
        return False


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of every chunk to the end mark; ValueError at one that is cut or damaged."""
    position, kind = _SIGNATURE_LENGTH, b""
    while kind != b"IEND":
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        checksum = int.from_bytes(data[end : end + 4], "big")
        if end + 4 > len(data) or zlib.crc32(data[position + 4 : end]) != checksum:
            raise ValueError(f"chunk at byte {position}")
        yield kind, data[position + 8 : end]
        position = end + 4
