"""Words that several commands say to a person."""

import shlex

_USUAL_BATCH = 64


def counted(number: int, noun: str) -> str:
    """`1 shard`, `2 shards`, `1,000 rows`."""
    return f"{number:,} {plural(noun, number)}"


def plural(noun: str, number: int) -> str:
    """The noun as it follows the number."""
    return noun if number == 1 else f"{noun}s"


def next_step(address: str, samples: int) -> str:
    """What to do with a new data set: a command that works on one of so few samples, too."""
    batch = min(_USUAL_BATCH, samples)
    return f"next: python -m pipeline.stream --data {shlex.quote(address)} --batch-size {batch}"
