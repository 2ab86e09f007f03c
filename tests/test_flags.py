"""docs/flags.md against the parsers: every flag is in the table with its default, aliases and meaning, and
nothing else is.
"""

import ast
import dataclasses
import importlib
import itertools
import re
import typing
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

PROJECT = Path(__file__).parents[1]
TABLE = (PROJECT / "docs" / "flags.md").read_text(encoding="utf-8")


def find_commands() -> dict[str, str]:
    """Command -> name of its config class: every module of `pipeline` that ends with a call of `main`."""
    commands = {}
    for path in sorted((PROJECT / "pipeline").glob("*.py")):
        last = ast.parse(path.read_text(encoding="utf-8")).body[-1]
        if isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'":
            call = typing.cast(ast.Call, typing.cast(ast.Expr, last.body[-1]).value)
            assert ast.literal_eval(call.args[2]) == path.stem, f"{path} calls itself by another name"
            commands[path.stem] = ast.unparse(call.args[1])
    return commands


COMMANDS = find_commands()


@dataclass(frozen=True)
class Flag:
    """A flag as the parser or, with type "", as the table has it."""

    type: str
    default: object  # a table's cell; "required"; or, of a parser, the value
    aliases: frozenset[str]
    meaning: str


def rows(section: str) -> list[list[str]]:
    """The cells of a section's rows that are about flags."""
    found = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", TABLE, re.DOTALL | re.MULTILINE)
    assert found, f"docs/flags.md has no section {section!r}"
    lines = [line for line in found[1].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def documented(command: str) -> dict[str, Flag]:
    flags: dict[str, Flag] = {}
    for quoted, _, default, listed, meaning in rows(command):
        name, aliases = quoted.strip("`"), re.findall(r"`(--[a-z0-9-]+)`", listed)
        assert name not in flags, f"{name} stands twice"
        flags[name] = Flag("", default, frozenset(aliases), meaning)
    return flags


def implemented(command: str) -> dict[str, Flag]:
    config = getattr(importlib.import_module(f"pipeline.{command}"), COMMANDS[command])
    hints, plain = typing.get_type_hints(config, include_extras=True), typing.get_type_hints(config)
    help_texts = docstrings(config)
    flags = {}
    for field in dataclasses.fields(config):
        arguments = getattr(hints[field.name], "__metadata__", ())
        aliases = frozenset(
            alias for argument in arguments for alias in getattr(argument, "aliases", None) or ()
        )
        default = "required" if field.default is dataclasses.MISSING else field.default
        name = field.name.replace("_", "-")
        flags[name.upper() if tyro.conf.Positional in arguments else f"--{name}"] = Flag(
            str(plain[field.name]), default, aliases, help_texts.get(field.name, "")
        )
    return flags


def docstrings(config: type) -> dict[str, str]:
    """The text under each field of a config and of those it extends, in one line: what --help shows."""
    if not dataclasses.is_dataclass(config):
        return {}
    texts = dict(itertools.chain.from_iterable(docstrings(base).items() for base in config.__bases__))
    source = Path(importlib.import_module(config.__module__).__file__ or "").read_text(encoding="utf-8")
    tree = ast.parse(source)
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == config.__name__)
    for statement, following in itertools.pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            text = ast.literal_eval(following.value)
            texts[ast.unparse(statement.target)] = " ".join(text.split())
    return texts


def test_every_command_has_its_section():
    sections = re.findall(r"^## ([a-z]+)$", TABLE, re.MULTILINE)
    assert {"shard", "stream", "train", "evaluate"} <= COMMANDS.keys()
    assert sorted(sections) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_table_and_parser_agree(command):
    table, parser = documented(command), implemented(command)
    assert table.keys() == parser.keys()
    for name, flag in parser.items():
        shown = str(table[name].default)
        assert table[name].aliases == flag.aliases, name
        if flag.default in (None, ()):
            assert shown, f"{name}: say what happens without it"
        elif isinstance(flag.default, bool):
            assert shown == "off", name
            assert flag.default is False, f"{name}: a switch is off unless given"
        else:
            assert shown.strip("`") == str(flag.default), name


@pytest.mark.parametrize("command", COMMANDS)
def test_table_and_help_say_the_same(command):
    """The table's meaning is the beginning of the help text; the default has a column of its own."""
    table = documented(command)
    for name, flag in implemented(command).items():
        assert flag.meaning, f"{name} has no help text"
        assert table[name].meaning, name
        assert flag.meaning.startswith(table[name].meaning), name


def test_one_name_means_one_thing():
    """A flag that several commands have has one type and one default, or a row that says why it has not."""
    seen = defaultdict(set)
    for command in COMMANDS:
        for name, flag in implemented(command).items():
            seen[name].add((flag.type, flag.default))
    differing = {name for name, kinds in seen.items() if len(kinds) > 1}
    assert differing == {name.strip("`") for name, *_ in rows("One name, several defaults")}


def test_an_alias_is_of_one_flag_and_is_no_flag_itself():
    owners = defaultdict(set)
    for command in COMMANDS:
        for name, flag in implemented(command).items():
            for alias in flag.aliases:
                owners[alias].add(name)
    assert not {alias: names for alias, names in owners.items() if len(names) > 1}
    assert not owners.keys() & {name for command in COMMANDS for name in implemented(command)}
