"""Tables of images and captions, read row by row: CSV, TSV, JSON lines and Parquet, from a path or any fsspec
address.

    for image, caption, others in read_table("s3://bucket/pmc_oa.jsonl.gz", TableFormat()):
        print(image, caption, others["alignment_score"])

Memory holds one row, or a thousand of a Parquet table, whatever the size of the table.
"""

import posixpath
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from pipeline.sharding.csv_table import read_csv
from pipeline.sharding.jsonl_table import read_jsonl
from pipeline.sharding.rows import Fields
from pipeline.sharding.table_file import open_bytes, open_text
from pipeline.sharding.table_format import TableFormat, TableKind
from shards import UsageError

__all__ = ["TableFormat", "TableKind", "file_name", "read_table", "table_kind", "table_stem"]

_KINDS: dict[str, TableKind] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_SEPARATORS = {"csv": ",", "tsv": "\t"}


def read_table(address: str, table: TableFormat) -> Iterator[Fields]:
    """(image, caption, other columns) of every row of one table, in order.

    Raises UsageError where the table is missing, malformed, or lacks one of the two columns; DataError where
    reading it fails.
    """
    kind, zipped = table_kind(address, table)
    if kind == "parquet":
        if zipped:
            raise UsageError(f"{address}: Parquet is compressed in itself: unpack the file with 'gunzip'")
        from pipeline.sharding.parquet_table import read_parquet  # pyarrow takes a while to import

        with open_bytes(address) as file:
            yield from read_parquet(file, address, table)
        return
    with open_text(address, zipped) as text:
        if kind == "jsonl":
            yield from read_jsonl(text, address, table)
        else:
            yield from read_csv(text, address, table, table.separator or _SEPARATORS[kind])


def table_kind(address: str, table: TableFormat) -> tuple[TableKind, bool]:
    """What kind of table it is, from the format or else the file's name, and whether it is gzip'd, from its
    name.

    Raises UsageError where neither says the kind.
    """
    name = file_name(address).lower()
    zipped = name.endswith(".gz")
    kind = table.kind or _KINDS.get(posixpath.splitext(name.removesuffix(".gz"))[1])
    if kind is None:
        raise UsageError(
            f"{address}: its name does not say what kind of table it is ({', '.join(_KINDS)}; all but "
            "Parquet also with .gz): give --table-format csv, tsv, jsonl or parquet"
        )
    return kind, zipped


def file_name(address: str) -> str:
    """The last part of a table's address: without the query of a web address or the archive it is in."""
    address = address.split("::")[0]
    path = urlsplit(address).path if address.startswith(("http://", "https://")) else address
    return posixpath.basename(path)


def table_stem(address: str) -> str:
    """The name of a table without its folder and its endings: `train` of data/train.csv.gz."""
    return re.sub(r"(\.\w+)?(\.gz)?$", "", file_name(address.rstrip("/")))
