"""Sealed files: torch.load reads them as any other, and no damage to them goes unnoticed."""

import io
import random

import pytest
import torch

from pipeline.checkpointing.sealed_file import Damaged, check_seal, write_sealed


@pytest.fixture
def sealed() -> bytes:
    out = io.BytesIO()
    write_sealed({"weights": torch.arange(999.0), "step": 3, "names": ["a", "b"]}, out.write)
    return out.getvalue()


def is_whole(data: bytes) -> bool:
    return check_seal(io.BytesIO(data))


def test_torch_reads_what_was_written(sealed):
    content = torch.load(io.BytesIO(sealed), weights_only=True)
    assert is_whole(sealed)
    assert torch.equal(content["weights"], torch.arange(999.0))
    assert (content["step"], content["names"]) == (3, ["a", "b"])


def test_a_flipped_bit_is_found_wherever_it_is(sealed):
    chance = random.Random(0)
    places = [*range(64), *(chance.randrange(len(sealed)) for _ in range(300)), len(sealed) - 1]
    for place in places:
        damaged = bytearray(sealed)
        damaged[place] ^= 1 << chance.randrange(8)
        try:
            whole = is_whole(bytes(damaged))
        except Damaged:
            continue
        # Only damage to the word "xxh3_128:" is of no consequence: the file counts as one without a seal.
        assert not whole
        assert len(sealed) - 41 <= place < len(sealed) - 32


def test_a_file_cut_short_is_no_sealed_file(sealed):
    for length in range(0, len(sealed), 97):
        assert not is_whole(sealed[:length])


def test_a_file_without_a_seal_is_told_apart():
    out = io.BytesIO()
    torch.save([1, 2], out)
    assert not is_whole(out.getvalue())
