"""The tables behind `pipeline.shard`: fields come through exactly, faults are placed, memory stays small.

What is particular to JSON lines and Parquet is in test_jsonl_tables.py and test_parquet_tables.py.
"""

import csv
import gzip
import http.server
import json
import os
import tempfile
import threading
import tracemalloc
from collections import deque

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import s3fs
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sharding.rows import Row
from pipeline.sharding.spool import spool_tables
from pipeline.sharding.tables import TableFormat, read_table
from shards import DataError, UsageError

any_text = st.text(st.characters(codec="utf-8"), max_size=40)

ROWS = [{"image": f"{n}.png", "caption": f"Fig {n}, “µm”\nline two", "licence": f"CC {n}"} for n in range(20)]


def rows_of(path, table=TableFormat()):  # noqa: B008 (frozen)
    with spool_tables([str(path)], table) as spooled:
        return spooled.rows(np.arange(len(spooled)))


def refusal(path, content: bytes, table=TableFormat()) -> str:  # noqa: B008 (frozen)
    path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        rows_of(path, table)
    return str(refused.value)


def write_rows(path, rows=ROWS) -> None:
    """A table of these rows, in the format that its name says."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".parquet", ".pq")):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as file:
        if name.endswith((".csv", ".tsv")):
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


EVERY_NAME = [
    *("t.csv", "t.CSV.gz", "t.tsv", "t.tsv.gz", "t.jsonl", "t.jsonl.gz", "t.ndjson", "t.json", "t.json.gz"),
    *("t.parquet", "t.pq"),
]


@given(st.lists(st.tuples(any_text, any_text, any_text), min_size=1, max_size=8), st.sampled_from(",;\t|"))
def test_every_field_comes_through_as_it_was_written(rows, separator):
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", suffix=".csv") as file:
        writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL)
        writer.writerows([("caption", "image", "licence"), *rows])
        file.flush()
        read = rows_of(file.name, TableFormat(separator=separator))
    assert read == [Row(n, i, c, {"licence": o}) for n, (c, i, o) in enumerate(rows)]


@pytest.mark.parametrize("name", EVERY_NAME)
def test_the_name_says_the_format(tmp_path, name):
    write_rows(tmp_path / name)
    expected = [(row["image"], row["caption"], {"licence": row["licence"]}) for row in ROWS]
    assert list(read_table(str(tmp_path / name), TableFormat())) == expected
    assert list(read_table(f"file://{tmp_path / name}", TableFormat())) == expected


@pytest.mark.parametrize("name", ["t.csv.gz", "t.jsonl", "t.parquet"])
def test_tables_are_read_from_s3(tmp_path, s3, name):
    write_rows(tmp_path / name)
    s3fs.S3FileSystem().put_file(str(tmp_path / name), f"{s3}/tables/{name}")
    assert list(read_table(f"{s3}/tables/{name}", TableFormat())) == list(
        read_table(str(tmp_path / name), TableFormat())
    )


def test_same_rows_have_one_hash_in_every_format(tmp_path):
    hashes = set()
    for name in EVERY_NAME:
        write_rows(tmp_path / name)
        with spool_tables([str(tmp_path / name)], TableFormat()) as spooled:
            hashes.add(spooled.sha256)
    assert len(hashes) == 1


def test_a_name_that_says_nothing_needs_the_flag(tmp_path):
    write_rows(tmp_path / "t.tsv")
    os.rename(tmp_path / "t.tsv", tmp_path / "t.txt")
    with pytest.raises(UsageError, match=r"t.txt: its name does not say .* give --table-format csv, tsv"):
        rows_of(tmp_path / "t.txt")
    assert len(rows_of(tmp_path / "t.txt", TableFormat(kind="tsv"))) == len(ROWS)
    assert len(rows_of(tmp_path / "t.txt", TableFormat(kind="csv", separator="\t"))) == len(ROWS)


def test_rows_are_fetched_in_any_order(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{n}.png,text {n}\n" for n in range(100)))
    with spool_tables([str(tmp_path / "t.csv")], TableFormat()) as spooled:
        assert [row.number for row in spooled.rows(np.array([99, 0, 7, 7]))] == [99, 0, 7, 7]
        assert spooled.rows(np.array([42])) == [Row(42, "42.png", "text 42", {})]


def test_marks_missing_fields_and_empty_lines_are_understood(tmp_path):
    (tmp_path / "t.csv").write_bytes(
        b"\xef\xbb\xbfimage,caption,note,note,note.1\r\na.png, x ,NA,null,-\r\n\r\nb.png\r\n"
    )
    assert rows_of(tmp_path / "t.csv") == [
        Row(0, "a.png", " x ", {"note": "NA", "note.2": "null", "note.1": "-"}),
        Row(1, "b.png", "", {"note": "", "note.2": "", "note.1": ""}),
    ]


def test_rows_with_too_many_fields_are_never_shifted(tmp_path):
    """An unquoted comma in every caption must not make the first column a row label, and so lose it."""
    said = refusal(tmp_path / "t.csv", b"image,caption\na.png,left, right\nb.png,left, right\n")
    assert "the row at line 2 has 3 fields, the header 2" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'image,caption\na.png,x\nb.png,"never\nclosed\n', "in the row that begins at line 3"),
        (b'image,caption\na.png,"say "hello" twice"\n', "a quote inside a quoted field is written twice"),
        (b"image,caption\na.png,ok\nb.png,M\xf6bius\n", "not UTF-8 (line 3, byte 30 of the file"),
        ("image,caption\na.png,x\n".encode("utf-16"), "not UTF-8 (line 1, byte 0 of the file"),
        (b"image,caption,caption\na.png,x,y\n", "2 columns are named 'caption'"),
        (b"image;caption\na.png;x\n", "give --separator ';'"),
        (b"image,text\na.png,x\n", "its columns are 'image', 'text'; name the right one with --caption-key"),
        (b"", "the table is empty"),
        (b"image,caption\n\n", "the table has no rows"),
        (gzip.compress(b"image,caption\n"), "it is gzip'd, which its name must say: add .gz to it"),
    ],
)
def test_faults_are_named_with_their_place(tmp_path, content, message):
    assert message in refusal(tmp_path / "t.csv", content)


@given(
    st.lists(st.sampled_from([b"a,bcd\n", b"a,\xc3\xa9\n", b"a,x\r\n", b"a,y\r"]), max_size=5),
    st.integers(0, 9000),
    st.booleans(),
)
def test_what_is_not_utf8_is_placed_wherever_it_lies(rows, padding, marked):
    """The file is decoded block by block, and the place is told from the block that fails."""
    before = b"\xef\xbb\xbf" * marked + b"image,caption\r\n" + b"a," + b"z" * padding + b"\n" + b"".join(rows)
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        file.write(before + b"a,caf\xe9 and more\n" + b"a,b\n" * 3000)
        file.flush()
        with pytest.raises(UsageError) as refused:
            list(read_table(file.name, TableFormat()))
    assert f"(line {3 + len(rows):,}, byte {len(before) + 5:,} of the file" in str(refused.value)


def test_a_packed_table_that_is_cut_short_is_never_taken_for_a_whole_one(tmp_path):
    whole = gzip.compress(b"image,caption\n" + b"a.png,x\n" * 10_000)
    for size in (1, len(whole) // 2, len(whole) - 1):
        assert "it is damaged or was cut short" in refusal(tmp_path / "t.csv.gz", whole[:size])
    damaged = bytearray(whole)
    damaged[-6] ^= 1
    assert "it is damaged or was cut short" in refusal(tmp_path / "t.csv.gz", bytes(damaged))


def test_a_plain_file_named_gz_is_refused(tmp_path):
    assert "not a whole gzip file (Not a gzipped file" in refusal(tmp_path / "t.csv.gz", b"image,caption\n")


def test_missing_tables_and_folders_are_refused_in_one_sentence(tmp_path, s3):
    s3fs.S3FileSystem().pipe_file(f"{s3}/folder.csv/inner.csv", b"image,caption\n")
    (tmp_path / "folder.csv").mkdir()
    for address, message in (
        (tmp_path / "no.csv", "no such table"),
        (f"{s3}/no.csv", "no such table"),
        ("s3://no-such-bucket/t.parquet", "no such table"),
        (tmp_path / "folder.csv", "is a folder"),
        (f"{s3}/folder.csv", "is a folder"),
        ("nothing://bucket/t.csv", "this kind of address is not available"),
    ):
        with pytest.raises(UsageError) as refused:
            rows_of(address)
        assert str(refused.value).startswith(str(address))
        assert message in str(refused.value)


@pytest.fixture
def s3_answering(monkeypatch):
    """`s3_answering(status)`: from now on S3 is a server that answers nothing else; None: there is none."""
    servers = []

    def start(status: int | None) -> None:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(status)
                self.end_headers()

            do_GET = do_HEAD  # noqa: N815

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        if status is None:
            server.server_close()
        else:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            servers.append(server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        s3fs.S3FileSystem.clear_instance_cache()

    yield start
    s3fs.S3FileSystem.clear_instance_cache()
    for server in servers:
        server.shutdown()
        server.server_close()


def test_wrong_credentials_are_named(s3_answering):
    s3_answering(403)
    with pytest.raises(DataError, match=r"s3://bucket/t.csv: access was denied .* credentials") as refused:
        rows_of("s3://bucket/t.csv")
    assert not isinstance(refused.value, UsageError)


@pytest.mark.slow
def test_storage_that_cannot_be_reached_is_named(s3_answering):
    s3_answering(None)
    with pytest.raises(DataError, match=r"s3://bucket/t.csv: reading the table failed: Could not connect"):
        rows_of("s3://bucket/t.csv")


def test_a_remote_table_that_changes_while_it_is_read_is_an_error(tmp_path, s3):
    storage = s3fs.S3FileSystem()
    storage.pipe_file(f"{s3}/changing.csv", b"image,caption\n" + b"a.png,xxxxxxxxxxxxxxxxxxxx\n" * 400_000)
    rows = read_table(f"{s3}/changing.csv", TableFormat())
    next(rows)
    storage.pipe_file(f"{s3}/changing.csv", b"image,caption\na.png,shorter\n")
    with pytest.raises(DataError, match=r"changing.csv: reading the table failed"):
        deque(rows, maxlen=0)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_captions_of_ten_megabytes_pass(tmp_path, name):
    caption = "figure\n" * (10 * 2**20 // 7)
    write_rows(tmp_path / name, [{"image": "a.png", "caption": caption}])
    assert [row.caption for row in rows_of(tmp_path / name)] == [caption]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("csv", b'image,caption\na.png,"' + b"x" * 2000 + b"\n"),  # an open quote
        ("csv", b"image,caption\na.png," + b"x" * 2000),
        ("jsonl", b'{"image": "a.png", "caption": "x"}\n{"image": "' + b"x" * 2000),
    ],
)
def test_what_never_ends_does_not_fill_memory(tmp_path, monkeypatch, kind, content):
    monkeypatch.setattr(f"pipeline.sharding.{kind}_table.LONGEST_FIELD", 1000)
    assert "line 2" in refusal(tmp_path / f"t.{kind}", content)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.jsonl.gz"])
def test_memory_does_not_grow_with_the_table(tmp_path, name):
    caption = "x" * 4000
    write_rows(tmp_path / name, [{"image": f"{n:09d}.png", "caption": caption} for n in range(5000)])  # 20 MB
    tracemalloc.start()
    try:
        with spool_tables([str(tmp_path / name)], TableFormat()) as spooled:
            spooled.rows(np.arange(4900, 5000))
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20
