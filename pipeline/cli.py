"""What every command shares: flags made from a config dataclass, and errors turned into one line and an exit
code.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from pipeline.topology import Topology
from pmc_clip.errors import ModelError
from shards import DataError, UsageError

Config = TypeVar("Config")


def main(
    command: Callable[[Config], None],
    config: type[Config],
    name: str,
    description: str,
    *,
    defaults: Callable[[Sequence[str]], Config | None] = lambda arguments: None,
) -> NoReturn:
    """Parse the command line into `config`, run `command` on it, and exit.

    defaults: what stands in for flags that are not given, where the command line says so.
    Exit codes: 0 done, 2 the request was wrong, 1 the work failed, 130 interrupted.
    """

    def parse_and_run() -> None:
        default = defaults(sys.argv[1:])
        given: dict[str, Any] = {} if default is None else {"default": default}
        flags = tyro.cli(
            config,
            prog=f"python -m pipeline.{name}",
            description=description,
            config=(tyro.conf.FlagCreatePairsOff,),
            **given,
        )
        command(flags)

    sys.exit(run(parse_and_run))


def run(work: Callable[[], None]) -> int:
    """Run `work`; report an expected error on standard error in one message; return the exit code."""
    try:
        work()
    except (UsageError, ModelError) as error:
        return _report(error, 2)
    except (DataError, OSError) as error:
        return _report(error, 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _report(error: Exception, code: int) -> int:
    print(f"{_who()}error: {error}", file=sys.stderr, flush=True)
    return code


def _who() -> str:
    """Which of several processes speaks."""
    try:
        topology = Topology.from_environment()
    except UsageError:
        return ""
    return f"rank {topology.rank}: " if topology.world_size > 1 else ""
