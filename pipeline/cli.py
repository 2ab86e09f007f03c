"""What every command shares: flags made from a config dataclass, and errors turned into one line and an exit
code.
"""

import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import tyro

from pipeline.topology import Topology
from pmc_clip.errors import ModelError
from shards import DataError, UsageError

Config = TypeVar("Config")


def main(command: Callable[[Config], None], config: type[Config], name: str, description: str) -> NoReturn:
    """Parse the command line into `config`, run `command` on it, and exit.

    Exit codes: 0 done, 2 the request was wrong, 1 the work failed, 130 interrupted.
    """
    flags = tyro.cli(
        config,
        prog=f"python -m pipeline.{name}",
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    sys.exit(run(lambda: command(flags)))


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
