"""The table behind `pipeline.shard`: fields come through exactly, faults are placed, memory stays small."""

import csv
import tempfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sharding.rows import Row
from pipeline.sharding.spool import spool_tables
from pipeline.sharding.tables import TableFormat
from shards import UsageError

any_text = st.text(st.characters(codec="utf-8"), max_size=40)


def rows_of(path, table=TableFormat()):  # noqa: B008 (frozen)
    with spool_tables([str(path)], table) as spooled:
        return spooled.rows(np.arange(len(spooled)))


def refusal(tmp_path, content: bytes, table=TableFormat()) -> str:  # noqa: B008 (frozen)
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UsageError) as refused:
        rows_of(tmp_path / "t.csv", table)
    return str(refused.value)


@given(st.lists(st.tuples(any_text, any_text, any_text), min_size=1, max_size=8), st.sampled_from(",;\t|"))
def test_every_field_comes_through_as_it_was_written(rows, separator):
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", suffix=".csv") as file:
        writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL)
        writer.writerows([("caption", "image", "licence"), *rows])
        file.flush()
        read = rows_of(file.name, TableFormat(separator=separator))
    assert read == [Row(n, i, c, {"licence": o}) for n, (c, i, o) in enumerate(rows)]


def test_rows_are_fetched_in_any_order(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{n}.png,text {n}\n" for n in range(100)))
    with spool_tables([str(tmp_path / "t.csv")], TableFormat()) as spooled:
        assert [row.number for row in spooled.rows(np.array([99, 0, 7, 7]))] == [99, 0, 7, 7]
        assert spooled.rows(np.array([42])) == [Row(42, "42.png", "text 42", {})]


def test_marks_missing_fields_and_empty_lines_are_understood(tmp_path):
    (tmp_path / "t.csv").write_bytes(
        b"\xef\xbb\xbfimage,caption,note,note\r\na.png, x ,NA,null\r\n\r\nb.png\r\n"
    )
    assert rows_of(tmp_path / "t.csv") == [
        Row(0, "a.png", " x ", {"note": "NA", "note.1": "null"}),
        Row(1, "b.png", "", {"note": "", "note.1": ""}),
    ]


def test_rows_with_too_many_fields_are_never_shifted(tmp_path):
    """An unquoted comma in every caption must not make the first column a row label, and so lose it."""
    said = refusal(tmp_path, b"image,caption\na.png,left, right\nb.png,left, right\n")
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
        (b"", "the table is empty"),
        (b"image,caption\n\n", "the table has no rows"),
    ],
)
def test_faults_are_named_with_their_place(tmp_path, content, message):
    assert message in refusal(tmp_path, content)


def test_an_open_quote_does_not_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sharding.tables.LONGEST_FIELD", 1000)
    assert "line 2" in refusal(tmp_path, b'image,caption\na.png,"' + b"x" * 2000 + b"\n")


def test_same_rows_have_one_hash_however_they_are_written(tmp_path):
    for name, text in (
        ("a", "image,caption\na,b\n"),
        ("b", '"image","caption"\r\n"a","b"'),
        ("c", "image,caption\na,c\n"),
    ):
        (tmp_path / name).write_text(text, newline="")
    a, b, c = (spool_tables([str(tmp_path / name)], TableFormat()).sha256 for name in "abc")
    assert a == b != c


def test_memory_does_not_grow_with_the_table(tmp_path):
    caption = "x" * 480
    with open(tmp_path / "t.csv", "w") as file:
        file.write("image,caption\n")
        file.writelines(f"{n:09d}.png,{caption}\n" for n in range(60_000))  # 30 MB
    tracemalloc.start()
    try:
        with spool_tables([str(tmp_path / "t.csv")], TableFormat()) as spooled:
            spooled.rows(np.arange(59_000, 60_000))
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20
