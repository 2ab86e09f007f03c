"""docs/flags.md against the parsers: every flag is in the table with its default and aliases, and nothing
else is.
"""

import dataclasses
import importlib
import re
import typing
from pathlib import Path

import pytest

COMMANDS = {
    "shard": "pipeline.shard.ShardConfig",
    "stream": "pipeline.stream.StreamConfig",
    "train": "pipeline.train_config.TrainConfig",
    "evaluate": "pipeline.evaluate.EvaluateConfig",
    "demo": "pipeline.demo.DemoConfig",
}
TABLE = Path(__file__).parents[1] / "docs" / "flags.md"


def config_class(command: str) -> type:
    module, _, name = COMMANDS[command].rpartition(".")
    return getattr(importlib.import_module(module), name)


def documented(command: str) -> dict[str, tuple[str, set[str]]]:
    """Flag -> (default, aliases), as the command's table has them."""
    text = TABLE.read_text(encoding="utf-8")
    section = re.search(rf"^## {command}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section, f"docs/flags.md has no section {command!r}"
    rows = {}
    for line in section[1].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `--"):
            flag, _, default, aliases, *_ = cells
            name = flag.strip("` |")
            assert name not in rows, f"{name} stands twice"
            rows[name] = (default, set(re.findall(r"`(--[a-z0-9-]+)`", aliases)))
    return rows


def implemented(command: str) -> dict[str, tuple[str, set[str]]]:
    """Flag -> (default, aliases), as the parser has them; a default of None is left to words."""
    config = config_class(command)
    hints = typing.get_type_hints(config, include_extras=True)
    rows = {}
    for field in dataclasses.fields(config):
        arguments = getattr(hints[field.name], "__metadata__", ())
        aliases = {alias for argument in arguments for alias in argument.aliases or ()}
        default = "required" if field.default is dataclasses.MISSING else field.default
        rows[f"--{field.name.replace('_', '-')}"] = (default, aliases)
    return rows


@pytest.mark.parametrize("command", COMMANDS)
def test_table_and_parser_agree(command):
    table, parser = documented(command), implemented(command)
    assert table.keys() == parser.keys()
    for flag, (default, aliases) in parser.items():
        shown, shown_aliases = table[flag]
        assert shown_aliases == aliases, flag
        if default is None:
            assert shown, f"{flag}: say what happens without it"
        elif isinstance(default, bool):
            assert shown == "off", flag
        else:
            assert shown.strip("`") == str(default), flag


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_help(command):
    source = Path(importlib.import_module(COMMANDS[command].rpartition(".")[0]).__file__).read_text(
        encoding="utf-8"
    )
    for field in dataclasses.fields(config_class(command)):
        assert re.search(rf'^    {field.name}: .*?\n    """\S', source, re.MULTILINE | re.DOTALL), field.name


def test_one_name_means_one_thing():
    """A flag that several commands have has one type and one default in all of them, and aliases never
    collide.
    """
    seen: dict[str, tuple[str, object]] = {}
    names: dict[str, str] = {}
    for command in COMMANDS:
        hints = typing.get_type_hints(config_class(command))
        for flag, (default, aliases) in implemented(command).items():
            kind = str(hints[flag[2:].replace("-", "_")])
            if flag in seen and flag not in MEANT_TO_DIFFER:
                assert seen[flag] == (kind, default), f"{flag} of {command}"
            seen.setdefault(flag, (kind, default))
            for alias in aliases:
                assert names.setdefault(alias, flag) == flag, alias
    assert not names.keys() & seen.keys()


# The same thing said for different jobs: where it is required, or what its natural default is.
MEANT_TO_DIFFER = {"--csv", "--out", "--model", "--batch-size"}
