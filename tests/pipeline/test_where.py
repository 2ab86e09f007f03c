"""The expressions of --where: what each means for a sample, and how wrong ones are refused."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.selection.where import Where
from shards import UsageError

SAMPLE = {
    "image": "PMC1_a.jpg",
    "licence": "CC BY",
    "score": "0.45",
    "year": 2019,
    "width": "1024",
    "height": "768",
    "empty": "",
    "null": None,
    "nan": float("nan"),
    "words": "many",
    "checked": True,
    "flag": "False",
    "labels": ["CT", "head", 3],
    "a b": "x",
    "key": "old",
}


def holds(expression: str, **columns) -> bool | None:
    return Where(expression).holds("000000007", "An MRI of the head", {**SAMPLE, **columns})


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("licence == 'CC BY'", True),
        ("licence != 'CC BY'", False),
        ("licence == 'CC BY' and score > 0.3", True),
        ("licence == 'CC0' or score > 0.3", True),
        ("not licence == 'CC0'", True),
        ("licence in ['CC BY', 'CC0']", True),
        ("licence not in ('CC BY', 'CC0')", False),
        ("licence in []", False),
        ("licence > 'CC A'", True),
        # a column from a table of text, read as a number because of what it is compared with
        ("score > 0.3", True),
        ("score == 0.450", True),
        ("0.3 < score <= 0.45", True),
        ("0.45 < score < 1", False),
        ("0.3 > score > oops", False),
        ("score in [0.45, 1]", True),
        ("year == '2019'", True),
        ("year >= 2019 and year < 2020", True),
        ("score == '0.450'", False),
        ("score > -1", True),
        ("width > height", True),
        ("width / height < 1.5", True),
        ("width - 24 == 1000", True),
        ("-score * 2 + 1 < .2", True),
        # text
        ("'MRI' in caption", True),
        ("'mri' in caption", False),
        ("'mri' in lower(caption)", True),
        ("'CT' not in caption", True),
        ("len(caption) >= 18", True),
        ("caption == 'An MRI of the head'", True),
        ("key == '000000007'", True),
        ("column('key') == 'old'", True),
        ("image == 'PMC1_a.jpg'", True),
        ("column('a b') == 'x'", True),
        # lists and truth values
        ("'CT' in labels", True),
        ("3 in labels", True),
        ("'MRI' in labels", False),
        ("checked", True),
        ("flag", False),
        ("not flag and checked == True", True),
        ("flag == False", True),
        # missing
        ("absent is None", True),
        ("null is None", True),
        ("nan is None", True),
        ("empty is None", False),
        ("empty == ''", True),
        ("licence is not None", True),
        ("absent == None", True),
        ("licence != None", True),
    ],
)
def test_expressions_mean_what_the_help_says(expression, expected):
    assert holds(expression) is expected


@pytest.mark.parametrize(
    "expression",
    [
        "words > 3",
        "words != 3",
        "not words > 3",
        "empty > 0",
        "null > 0",
        "nan > 0",
        "absent == 'x'",
        "absent != 'x'",
        "not absent == 'x'",
        "absent in ['x', 'y']",
        "absent not in ['x', 'y']",
        "'x' in absent",
        "'x' in year",
        "checked > 0",
        "licence == True",
        "licence",
        "len(year) > 1",
        "width / 0 > 1",
        "words - 1 == 2",
        "absent == 'x' and licence == 'CC BY'",
        "absent == 'x' or licence == 'CC0'",
    ],
)
def test_a_value_that_is_missing_or_cannot_be_read_leaves_it_unknown(expression):
    assert holds(expression) is None


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("absent == 'x' or licence == 'CC BY'", True),
        ("licence == 'CC BY' or absent == 'x'", True),
        ("absent == 'x' and licence == 'CC0'", False),
        ("not (absent == 'x' and licence == 'CC0')", True),
    ],
)
def test_the_other_side_may_decide_what_one_side_leaves_unknown(expression, expected):
    assert holds(expression) is expected


@pytest.mark.parametrize("text", ["1_000", "٣", "inf", "nan", "0x10", "1e", "", "--1", "1 2"])
def test_only_plain_decimal_numbers_are_numbers(text):
    assert holds("score < 1e9", score=text) is None


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_and_its_text_compare_alike(number):
    for value in (number, str(number), f" {number}\n"):
        assert holds(f"score == {number}", score=value) is True
        assert holds(f"score < {number}", score=value) is False


def test_the_columns_used_are_known():
    where = Where("'x' in caption and column('a b') == key and (score > 1 or image is None)")
    assert where.columns == {"a b", "score", "image"}


def test_an_expression_travels_to_other_processes():
    where = pickle.loads(pickle.dumps(Where("score > 0.3")))
    assert where.holds("k", "c", {"score": "0.4"}) is True


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("licence = 'CC BY'", "not an expression"),
        ("licence == 'CC BY' &&& x", "not an expression"),
        ("", "not an expression"),
        ("licence == 'CC", "not an expression"),
        ("licence ==\x00 'x'", "not an expression"),
        ("9" * 9000 + " > score", "not an expression"),
        ("not " * 100_000 + "x", "nested too deeply"),
        ("'CC BY'", "a condition is needed"),
        ("score + 1", "a condition is needed"),
        ("score > 1 and 'x'", "a condition is needed"),
        ("licence in 'CC BY, CC0'", "needs a list"),
        ("licence in [score]", "texts and numbers only"),
        ("licence in [None]", "None cannot stand here"),
        ("score > None", "None can only stand in"),
        ("flag is True", "None can only stand in"),
        ("flag > True", "True and False have no order"),
        ("'a' + 1 > 2", "a number is needed"),
        ("score ** 9 > 2", "BinOp is not part"),
        ("score > b'x'", "cannot stand here"),
        ("score > 1j", "cannot stand here"),
        ("image.upper() == 'X'", "the functions are"),
        ("__import__('os') == 1", "the functions are"),
        ("column(licence) == 1", "name in quotes"),
        ("image.x == 1", "Attribute is not part"),
        ("image[0] == 'P'", "Subscript is not part"),
        ("(lambda: 1) == 1", "Lambda is not part"),
        ("(x := 1) == 1", "NamedExpr is not part"),
        ("f'{licence}' == 'x'", "JoinedStr is not part"),
        ("[x for x in licence] == 1", "ListComp is not part"),
    ],
)
def test_what_is_no_such_expression_is_refused(expression, message):
    with pytest.raises(UsageError, match=message):
        Where(expression)


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("'α' in caption and score ** 2 > 4", "score ** 2 > 4"),
        ("licence == 'CC BY' and\n caption.x == 1", "caption.x == 1"),
        ("score > 1 and ?", "?"),
    ],
)
def test_a_refusal_points_to_the_place(expression, part):
    expression = f"({expression})"
    with pytest.raises(UsageError) as refused:
        Where(expression)
    _, line, pointer = str(refused.value).split("\n")
    assert line[pointer.index("^") :] == f"{part})"
