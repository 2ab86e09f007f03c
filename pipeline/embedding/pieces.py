"""The files of one piece of embeddings: features of a run of samples, with their numbers, keys and captions.

    npy       image-000003.npy, text-000003.npy ([rows, D]), samples-000003.parquet (number, key, caption)
    parquet   samples-000003.parquet, with the columns image and text beside these three

`samples-….parquet` is written last: where it is there, the piece is whole.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.embedding.manifest import Format, LeftOut, Part
from shards import DataError, Folder

_NAME = re.compile(r"(?:samples-(\d{6,})\.parquet|(?:image|text)-\d{6,}\.npy)")
_LEFT_OUT = b"left_out"
_REMEDY = "delete it and run the same 'python -m pipeline.embed' command again: it writes what is gone"


@dataclass(frozen=True)
class Piece:
    """Features of some samples, and which samples these are. No row for one that was left out."""

    numbers: np.ndarray  # [rows] int64, sample ids
    keys: Sequence[str]
    captions: Sequence[str]
    features: Mapping[Part, np.ndarray]  # [rows, D]
    left_out: Sequence[LeftOut] = ()


def samples_file(piece: int) -> str:
    """The file of a piece that is written last."""
    return f"samples-{piece:06d}.parquet"


def features_file(part: Part, piece: int, format: Format) -> str:
    """The file that holds a piece's features."""
    return f"{part}-{piece:06d}.npy" if format == "npy" else samples_file(piece)


def is_piece_file(name: str) -> bool:
    """Whether a file of this name is part of a piece."""
    return _NAME.fullmatch(name) is not None


def finished_pieces(names: Sequence[str]) -> set[int]:
    """The pieces that are whole, from the names of the files in a folder."""
    found = (_NAME.fullmatch(name) for name in names)
    return {int(match[1]) for match in found if match and match[1]}


def write_piece(folder: Folder, number: int, piece: Piece, format: Format) -> None:
    """Write a piece's files; until the last of them appears, there is no such piece."""
    columns = {
        "number": pa.array(piece.numbers, pa.int64()),
        "key": pa.array(map(_as_utf8, piece.keys), pa.string()),
        "caption": pa.array(map(_as_utf8, piece.captions), pa.string()),
    }
    for part, features in piece.features.items():
        if format == "parquet":
            flat = pa.array(features.reshape(-1))
            columns[part] = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
        else:
            out = io.BytesIO()
            np.save(out, features)
            folder.write(features_file(part, number, format), out.getbuffer())
    left_out = json.dumps([asdict(entry) for entry in piece.left_out])
    sink = pa.BufferOutputStream()
    table = pa.table(columns).replace_schema_metadata({_LEFT_OUT: left_out.encode()})
    pq.write_table(table, sink, compression="zstd")
    folder.write(samples_file(number), memoryview(sink.getvalue()))


def _as_utf8(text: str) -> str:
    """A text as a file can hold it: file names and captions may have characters that are none."""
    return text.encode("utf-8", "replace").decode()


def count_rows(folder: Folder, number: int) -> tuple[int, list[LeftOut]]:
    """How many rows a piece that is there has, and the samples that were left out of it."""
    metadata = _open_samples(folder, number).schema_arrow.metadata or {}
    left_out = [LeftOut(**entry) for entry in json.loads(metadata.get(_LEFT_OUT, b"[]"))]
    return _open_samples(folder, number).metadata.num_rows, left_out


def read_samples(folder: Folder, number: int) -> pa.Table:
    """The columns number, key and caption of a piece."""
    return _open_samples(folder, number).read(columns=["number", "key", "caption"])


def read_features(folder: Folder, part: Part, number: int, format: Format) -> np.ndarray:
    """A piece's features [rows, D]: of a local .npy file mapped into memory, else read."""
    name = features_file(part, number, format)
    try:
        if format == "parquet":
            column = _open_samples(folder, number).read(columns=[part]).column(part).combine_chunks()
            return np.array(column.values).reshape(len(column), column.type.list_size)
        if folder.remote:
            return np.load(io.BytesIO(folder.read(name)), allow_pickle=False)
        return np.load(folder.locate(name).removeprefix("file://"), mmap_mode="c", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{folder.locate(name)}: no such file; run the same command again") from error
    except (ValueError, EOFError, pa.ArrowException) as error:
        raise DataError(f"{folder.locate(name)}: damaged ({error}); {_REMEDY}") from error


def _open_samples(folder: Folder, number: int) -> pq.ParquetFile:
    name = samples_file(number)
    try:
        if folder.remote:
            return pq.ParquetFile(pa.BufferReader(folder.read(name)))
        return pq.ParquetFile(folder.locate(name).removeprefix("file://"), memory_map=True)
    except pa.ArrowException as error:
        raise DataError(f"{folder.locate(name)}: damaged ({error}); {_REMEDY}") from error
    except FileNotFoundError as error:
        raise DataError(f"{folder.locate(name)}: no such file; {_REMEDY}") from error
