"""JSON lines as tables: values keep their types; what is not one object a line is refused with its place."""

import json
import math
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sharding.tables import TableFormat, read_table
from shards import UsageError

texts = st.text(st.characters(codec="utf-8"), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
others = st.dictionaries(texts.filter(lambda name: name not in ("image", "caption")), values, max_size=3)


def read(path, content: bytes, table=TableFormat()):  # noqa: B008 (frozen)
    path.write_bytes(content)
    return list(read_table(str(path), table))


@given(st.lists(st.tuples(texts, texts, others), max_size=5), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_every_value_comes_through_with_its_type(rows, ascii_only, end):
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", suffix=".jsonl") as file:
        for image, caption, other in rows:
            line = {"caption": caption, **other, "image": image}
            file.write(json.dumps(line, ensure_ascii=ascii_only) + end)
        file.flush()
        assert list(read_table(file.name, TableFormat())) == rows


def test_the_published_shape_is_read(tmp_path):
    published = {
        "image": "PMC212319_Fig3_4.jpg",
        "caption": "A) liver",
        "alignment_type": "sub",
        "alignment_score": 0.25,
    }
    assert read(tmp_path / "pmc_oa.jsonl", json.dumps(published).encode()) == [
        ("PMC212319_Fig3_4.jpg", "A) liver", {"alignment_type": "sub", "alignment_score": 0.25})
    ]


def test_marks_empty_lines_and_a_missing_last_end_are_understood(tmp_path):
    content = b'\xef\xbb\xbf{"image": "a", "caption": "b"}\r\n\r\n  \n{"image": "c", "caption": "d"}'
    assert read(tmp_path / "t.jsonl", content) == [("a", "b", {}), ("c", "d", {})]


def test_an_empty_object_is_a_row_and_says_nothing_about_the_columns(tmp_path):
    content = b'{}\n{"image": "a", "caption": "b"}\n'
    assert read(tmp_path / "t.jsonl", content) == [("", "", {}), ("a", "b", {})]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"image": "b"}', ("b", "")),
        ('{"caption": "x"}', ("", "x")),
        ("{}", ("", "")),
        ('{"image": null, "caption": null}', ("", "")),
        ('{"image": 17, "caption": 2.5}', ("17", "2.5")),
        ('{"image": "b", "caption": ["one", "two"]}', ("b", "one\ntwo")),
        ('{"image": "b", "caption": []}', ("b", "")),
    ],
)
def test_cells_that_are_no_text_become_text_where_that_is_plain(tmp_path, row, expected):
    content = '{"image": "a", "caption": "x"}\n' + row
    assert read(tmp_path / "t.jsonl", content.encode())[1][:2] == expected


def test_what_json_and_utf8_do_not_know_never_reaches_a_sample(tmp_path):
    content = (
        b'{"image": "\\ud83d.png", "caption": "half \\uDE00", "nan": NaN, "far": [-Infinity, 1e999, 1.5], '
        b'"whole \\ud83d\\ude00": {"k\\udc00": "\\ud800"}}'
    )
    ((image, caption, other),) = read(tmp_path / "t.jsonl", content)
    assert (image, caption) == ("\ufffd.png", "half \ufffd")
    assert other == {"nan": None, "far": [None, None, 1.5], "whole 😀": {"k\ufffd": "\ufffd"}}
    json.dumps(other, ensure_ascii=False, allow_nan=False).encode()


def test_whole_numbers_stay_exact(tmp_path):
    content = b'{"image": "a", "caption": "x", "pmid": 123456789012345678901234567890, "score": 1.0}'
    other = read(tmp_path / "t.jsonl", content)[0][2]
    assert other == {"pmid": 123456789012345678901234567890, "score": 1.0}
    assert math.copysign(1, other["score"]) == 1
    assert isinstance(other["score"], float)


GOOD = b'{"image": "a", "caption": "x"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + b'{"image": "b", "capt', "line 2 is no whole JSON object (Unterminated string"),
        (GOOD + b'{"image": "b", "capt', "the file ends in it: it may have been cut short"),
        (GOOD + b'{"image": "b", caption: "x"}\n' + GOOD, "line 2 is no whole JSON object (Expecting"),
        (GOOD + b"{}{}\n", "line 2 is no whole JSON object (Extra data"),
        (b'{\n "image": "a",\n "caption": "x"\n}\n', "line 1 is no whole JSON object"),
        (GOOD + b'"text"\n', "line 2 is no whole JSON object (it holds another value)"),
        (b'[{"image": "a", "caption": "x"}]', "line 1 begins a JSON array; a table has one object a line"),
        (b'[\n{"image": "a", "caption": "x"}\n]', "line 1 begins a JSON array"),
        (GOOD + b'{"image": "b", "caption": "M\xf6bius"}\n', "not UTF-8 (line 2, byte 59 of the file"),
        (GOOD + b'{"image": "b", "caption": "\xed\xa0\x80"}\n', "not UTF-8 (line 2, byte 58 of the file"),
        ('{"image": "a"}\n'.encode("utf-16"), "not UTF-8 (line 1, byte 0 of the file"),
        (GOOD + b'{"image": "b", "caption": {"en": "x"}}\n', "line 2: the caption is an object, not text"),
        (GOOD + b'{"image": "b", "caption": [1, 2]}\n', "line 2: the caption is a list, not text or a list"),
        (GOOD + b'{"image": true, "caption": "x"}\n', "line 2: the image is true or false, not a name"),
        (
            GOOD + b'{"image": {"bytes": "AA"}, "caption": "x"}\n',
            "line 2: the image is an object, not a name",
        ),
        (b'{"image": "a", "text": "x"}\n', "no column 'caption'; its columns are 'image', 'text'; name the"),
        (GOOD + b'{"image": "b", "deep": ' + b"[" * 100_000 + b"\n", "line 2 is no whole JSON object"),
        (GOOD + b'{"image": "b", "pmid": ' + b"1" * 5000 + b"}\n", "line 2 is no whole JSON object (Exceeds"),
    ],
)
def test_faults_are_named_with_their_place(tmp_path, content, message):
    with pytest.raises(UsageError) as refused:
        read(tmp_path / "t.jsonl", content)
    assert str(refused.value).startswith(str(tmp_path / "t.jsonl"))
    assert message in str(refused.value)
