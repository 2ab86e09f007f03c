"""The expressions of `--where`: conditions on a sample's columns, such as `licence == 'CC BY' and year > 2`.

An expression is Python's syntax, parsed by `ast` and never evaluated as Python. It knows:

- columns of the sample's `.json` by their names, or `column("name with spaces")`; `key` and `caption` are the
  sample's own;
- texts, numbers, `True`, `False` and `None`; lists of them after `in`;
- `and`, `or`, `not`; `==`, `!=`, `<`, `<=`, `>`, `>=`, also chained (`0.3 < score <= 0.9`);
- `licence in ['CC BY', 'CC0']`, `'MRI' in caption` (any place, upper and lower case differ), `not in`;
- `pmcid is None`, `pmcid is not None`; `+`, `-`, `*`, `/` on numbers; `lower(caption)`, `len(caption)`.

Tables hold text as often as numbers, so what a column is compared with decides how it is read: compared with
a number it is read as a number, compared with `True` or `False` as one of these, else as it is. `<` between
two columns compares numbers. A value that cannot be read so, or is missing, makes the comparison unknown, as
in SQL: `not` leaves it unknown, and so do `and` and `or` where the other side does not decide. Only samples
of which the whole expression is true are selected.
"""

import ast
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from pipeline.selection.values import (
    Columns,
    Condition,
    Reader,
    Value,
    as_bool,
    as_number,
    calculate,
    clean,
    combine,
    compare,
    contains,
    is_number,
    negate,
)
from shards import UsageError

OWN_NAMES = ("key", "caption")  # of the sample itself; every other name is a column of its JSON
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Where:
    """A parsed expression; UsageError, pointing to the place, where the text is none.

    `columns` are the JSON columns that it names. Pickles as its text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        parser = _Parser(text)
        self._condition = parser.parse()
        self.columns = frozenset(parser.columns)

    def __reduce__(self) -> tuple[type["Where"], tuple[str]]:
        return Where, (self.text,)

    def holds(self, key: str, caption: str, columns: Columns) -> bool | None:
        """Whether the expression is true of a sample; None where its values leave that unknown."""
        own = {_own(name): value for name, value in zip(OWN_NAMES, (key, caption), strict=True)}
        return self._condition({**columns, **own})


def _own(name: str) -> str:
    """Under which name a sample's own value lies among its columns: one that no column has."""
    return f"\0{name}"


class _Parser:
    """Turns the syntax tree into functions, and collects the columns on the way."""

    def __init__(self, text: str) -> None:
        self._text = text.strip()
        self.columns: set[str] = set()

    def parse(self) -> Condition:
        try:
            return self._condition(ast.parse(self._text, mode="eval").body)
        except SyntaxError as error:
            raise self._refusal(
                f"not an expression ({error.msg})", error.lineno or 1, (error.offset or 1) - 1
            ) from None
        except ValueError as error:  # a NUL character, a number of thousands of digits
            raise self._refusal(f"not an expression ({error})", 1, 0) from None
        except (RecursionError, MemoryError):
            raise UsageError("--where: the expression is nested too deeply") from None

    def _refusal(self, what: str, line: int, column: int) -> UsageError:
        shown = [*self._text.split("\n"), ""][line - 1]
        return UsageError(f"--where: {what}\n  {shown}\n  {' ' * column}^")

    def _wrong(self, node: ast.expr, what: str) -> UsageError:
        before = self._text.split("\n")[node.lineno - 1].encode()[: node.col_offset]
        return self._refusal(what, node.lineno, len(before.decode()))

    def _condition(self, node: ast.expr) -> Condition:
        """What is true, false or unknown of a sample."""
        if isinstance(node, ast.BoolOp):
            parts = [self._condition(value) for value in node.values]
            decided_by = isinstance(node.op, ast.Or)
            return lambda columns: combine(parts, columns, decided_by)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self._condition(node.operand)
            return lambda columns: negate(inner(columns))
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if _is_column(node):
            read = self._reader(node)
            return lambda columns: as_bool(read(columns))
        raise self._wrong(node, "a condition is needed here, such as a comparison")

    def _comparison(self, node: ast.Compare) -> Condition:
        sides = [node.left, *node.comparators]
        pairs = [self._pair(*pair) for pair in zip(sides[:-1], node.ops, sides[1:], strict=True)]
        return pairs[0] if len(pairs) == 1 else lambda columns: combine(pairs, columns, decided_by=False)

    def _pair(self, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> Condition:
        if isinstance(sign, ast.Is | ast.IsNot) or _is_none(left) or _is_none(right):
            return self._missing(left, sign, right)
        if isinstance(sign, ast.In | ast.NotIn):
            inside = self._membership(left, right)
            return inside if isinstance(sign, ast.In) else lambda columns: negate(inside(columns))
        ordering = not isinstance(sign, ast.Eq | ast.NotEq)
        if ordering and (_is_bool(left) or _is_bool(right)):
            raise self._wrong(left if _is_bool(left) else right, "True and False have no order: use == or !=")
        sign_holds = _COMPARISONS[type(sign)]
        read_left, read_right = self._reader(left), self._reader(right)
        numbers = ordering and not (_is_text(left) or _is_text(right))
        return lambda columns: compare(sign_holds, read_left(columns), read_right(columns), numbers=numbers)

    def _missing(self, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> Condition:
        if not _is_none(right) or not isinstance(sign, ast.Is | ast.IsNot | ast.Eq | ast.NotEq):
            raise self._wrong(left, "None can only stand in 'COLUMN is None' and 'COLUMN is not None'")
        read, wanted = self._reader(left), isinstance(sign, ast.Is | ast.Eq)
        return lambda columns: (read(columns) is None) == wanted

    def _membership(self, item: ast.expr, container: ast.expr) -> Condition:
        read = self._reader(item)
        if isinstance(container, ast.List | ast.Tuple | ast.Set):
            members = [self._constant(element) for element in container.elts]
            equal = [partial(_equals, read, member) for member in members]
            return lambda columns: combine(equal, columns, decided_by=True)
        if isinstance(container, ast.Constant):
            raise self._wrong(container, "'in' needs a list, such as ['CC BY', 'CC0'], or a column here")
        read_container = self._reader(container)
        return lambda columns: contains(read_container(columns), read(columns))

    def _constant(self, node: ast.expr) -> Value:
        constant = node.operand if isinstance(node, ast.UnaryOp) else node
        if not isinstance(constant, ast.Constant):
            raise self._wrong(node, "a list holds texts and numbers only")
        return self._reader(node)({})

    def _reader(self, node: ast.expr) -> Reader:
        """What has a value for each sample."""
        if isinstance(node, ast.Constant):
            value = node.value
            if not isinstance(value, str | int | float):
                raise self._wrong(node, f"{ast.unparse(node)} cannot stand here")
            return lambda columns: value
        if isinstance(node, ast.Name):
            return self._named(_own(node.id) if node.id in OWN_NAMES else node.id)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            inner = self._number(node.operand)
            sign = -1 if isinstance(node.op, ast.USub) else 1
            return lambda columns: calculate(operator.mul, sign, inner(columns))
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            operation = _ARITHMETIC[type(node.op)]
            left, right = self._number(node.left), self._number(node.right)
            return lambda columns: calculate(operation, left(columns), right(columns))
        raise self._wrong(node, f"{type(node).__name__} is not part of these expressions; see --help")

    def _number(self, node: ast.expr) -> Reader:
        if isinstance(node, ast.Constant) and not is_number(node.value):
            raise self._wrong(node, "a number is needed here")
        read = self._reader(node)
        return lambda columns: as_number(read(columns))

    def _named(self, name: str) -> Reader:
        if not name.startswith("\0"):
            self.columns.add(name)
        return lambda columns: clean(columns.get(name))

    def _call(self, node: ast.Call) -> Reader:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in ("column", "lower", "len") or len(node.args) != 1 or node.keywords:
            raise self._wrong(node, "the functions are column('NAME'), lower(COLUMN) and len(COLUMN)")
        argument = node.args[0]
        if name == "column":
            if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
                raise self._wrong(argument, "column() needs the column's name in quotes")
            return self._named(argument.value)
        read = self._reader(argument)
        function: Callable[[str], Value] = str.lower if name == "lower" else len
        return lambda columns: function(text) if isinstance(text := read(columns), str) else None


def _equals(read: Reader, member: Value, columns: Columns) -> bool | None:
    return compare(operator.eq, read(columns), member)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_bool(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bool)


def _is_column(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) or (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "column"
    )
