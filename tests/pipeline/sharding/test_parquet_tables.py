"""Parquet as tables: values become plain JSON, memory stays small, damage and bytes are refused."""

import datetime
import decimal
import io
import json
import tracemalloc
import uuid

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sharding.tables import TableFormat, read_table
from shards import UsageError

texts = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.none() | st.integers(-(2**63), 2**63 - 1)
rows_of_texts_and_numbers = st.lists(
    st.tuples(texts, texts, numbers, st.lists(texts, max_size=3)), max_size=12
)


def write(path, columns: dict, **options) -> str:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return str(path)


def refusal(address: str) -> str:
    with pytest.raises(UsageError) as refused:
        list(read_table(address, TableFormat()))
    assert str(refused.value).startswith(address)
    return str(refused.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parquet")


@settings(max_examples=30)
@given(rows_of_texts_and_numbers, st.integers(1, 5))
def test_every_value_comes_through_whatever_the_row_groups(folder, rows, rows_in_group):
    columns = list(zip(*rows, strict=True)) or [[]] * 4
    table = {
        "caption": pyarrow.array(columns[1], pyarrow.string()),
        "pmid": pyarrow.array(columns[2], pyarrow.int64()),
        "authors": pyarrow.array(columns[3], pyarrow.list_(pyarrow.string())),
        "image": pyarrow.array(columns[0], pyarrow.string()),
    }
    address = write(folder / "t.parquet", table, row_group_size=rows_in_group)
    assert list(read_table(address, TableFormat())) == [
        (image, caption, {"pmid": pmid, "authors": authors}) for image, caption, pmid, authors in rows
    ]


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (datetime.date(2024, 2, 29), None, "2024-02-29"),
        (datetime.datetime(2024, 2, 29, 12), pyarrow.timestamp("us"), "2024-02-29T12:00:00"),
        (datetime.datetime(2024, 2, 29, 12), pyarrow.timestamp("ns", "UTC"), "2024-02-29T12:00:00+00:00"),
        (datetime.time(8, 30), None, "08:30:00"),
        (decimal.Decimal("0.25"), None, 0.25),
        (decimal.Decimal("17"), None, 17),
        (float("nan"), None, None),
        (float("inf"), None, None),
        (None, pyarrow.string(), None),
        (True, None, True),
        (0.5, pyarrow.float16(), 0.5),
        ("CC BY", pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), "CC BY"),
        (
            {"a": [1.5, float("nan")], "b": datetime.date(2024, 1, 1)},
            None,
            {"a": [1.5, None], "b": "2024-01-01"},
        ),
        ([("a", 1)], pyarrow.map_(pyarrow.string(), pyarrow.int64()), [["a", 1]]),
        (uuid.UUID(int=7).bytes, pyarrow.uuid(), "00000000-0000-0000-0000-000000000007"),
        (datetime.timedelta(hours=2), None, "2:00:00"),
    ],
)
def test_other_columns_become_plain_json(tmp_path, value, kind, expected):
    columns = {"image": ["a"], "caption": ["x"], "other": pyarrow.array([value], kind)}
    ((_, _, other),) = read_table(write(tmp_path / "t.parquet", columns), TableFormat())
    assert json.loads(json.dumps(other, allow_nan=False)) == {"other": expected}


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["x", None], ["x", ""]),
        ([["one", "two"], []], ["one\ntwo", ""]),
        ([1, 2.5], ["1.0", "2.5"]),
        ([float("nan"), None], ["", ""]),  # what pandas makes of a column without a text
        (pyarrow.array(["x", "x"]).dictionary_encode(), ["x", "x"]),
        (pyarrow.array(["x", "y"], pyarrow.large_string()), ["x", "y"]),
    ],
)
def test_captions_of_every_plain_type_are_texts(tmp_path, captions, expected):
    address = write(tmp_path / "t.parquet", {"image": ["a", "b"], "caption": captions})
    assert [caption for _, caption, _ in read_table(address, TableFormat())] == expected


def test_images_inside_the_table_are_refused_with_their_column(tmp_path):
    """The shape of image data sets on the hub: a name and the file's bytes."""
    columns = {"image": [{"bytes": b"\xff\xd8", "path": "a.jpg"}], "caption": ["x"]}
    said = refusal(write(tmp_path / "t.parquet", columns))
    assert "column 'image' holds the images themselves, not their names" in said


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["a"], "caption": ["x"], "thumb": [[b"\xff"]]}, "column 'thumb' holds bytes"),
        ({"image": ["a"], "text": ["x"]}, "no column 'caption'; its columns are 'image', 'text'"),
        ({"image": ["a"], "caption": [{"en": "x"}]}, "row 0: the caption is an object, not text"),
        ({"image": [["a"]], "caption": ["x"]}, "row 0: the image is a list, not a name"),
        (
            {"image": ["a"], "caption": ["x"], "day": pyarrow.array([2**31 - 1], pyarrow.date32())},
            "column 'day' holds what cannot be read",
        ),
    ],
)
def test_columns_that_cannot_be_taken_are_named(tmp_path, columns, message):
    assert message in refusal(write(tmp_path / "t.parquet", columns))


def test_files_that_are_cut_short_or_damaged_are_refused(tmp_path):
    whole = io.BytesIO()
    captions = [f"caption {n} " * 20 for n in range(2000)]
    pyarrow.parquet.write_table(pyarrow.table({"image": captions, "caption": captions}), whole)
    content = whole.getvalue()
    path = tmp_path / "t.parquet"
    for size in (0, 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert "not a whole Parquet file" in refusal(str(path))
    path.write_bytes(content[:1000] + bytes(5000) + content[6000:])
    assert "the Parquet file is damaged" in refusal(str(path))
    path.rename(tmp_path / "t.parquet.gz")
    assert "Parquet is compressed in itself: unpack the file" in refusal(str(tmp_path / "t.parquet.gz"))


def test_memory_does_not_grow_with_a_row_group(tmp_path):
    captions = [f"{n:06d}" + "figure text " * 200 for n in range(20_000)]  # 48 MB in one row group
    columns = {"image": [str(n) for n in range(20_000)], "caption": captions}
    address = write(tmp_path / "t.parquet", columns, compression="none", use_dictionary=False)
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    try:
        held = max(pyarrow.total_allocated_bytes() for _ in read_table(address, TableFormat()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held - before + peak < 16 * 2**20
