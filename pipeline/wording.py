"""How numbers of things are told to a person."""


def counted(number: int, noun: str) -> str:
    """`1 shard`, `2 shards`, `1,000 rows`."""
    return f"{number:,} {plural(noun, number)}"


def plural(noun: str, number: int) -> str:
    """The noun as it follows the number."""
    return noun if number == 1 else f"{noun}s"
