"""The keyed integer hash from which every permutation and every random number of a run is drawn.

numpy's and torch's generators may change their streams between versions; this must never change, since the
order of samples follows from it. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014); a golden vector in the tests pins it.
"""

from enum import IntEnum

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_CHUNK = 2**20


class Purpose(IntEnum):
    """What a number is drawn for: two uses of one (seed, epoch, sample) never share their randomness."""

    BLOCKS = 1  # the order of blocks in an epoch
    WITHIN_BLOCK = 2  # the order of samples inside a block
    LANES = 3  # which piece of the line is which lane
    CROP = 4  # augmentation of an image
    MASK = 5  # masking of a caption
    DROPOUT = 6  # the generator of a training step
    ROWS = 7  # the order in which table rows are packed into shards
    SPLIT = 8  # which split a group of rows belongs to
    CAPTION = 9  # which of several captions of an image is taken
    TRANSFORM = 10  # the generator of a user's transform
    SOURCE = 11  # the seed of the order of a mixture's second and further data sets
    SUBSET = 12  # which samples an evaluation of some of them takes
    BOOTSTRAP = 13  # which samples a resample takes


def _finalise(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def derive(*words: "int | np.ndarray") -> np.ndarray:
    """A 64-bit key for each tuple of words (integers or integer arrays that broadcast): uint64 [...]."""
    key = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            word64 = (
                np.asarray(word).astype(np.uint64)
                if isinstance(word, np.ndarray)
                else np.uint64(word & _MASK)
            )
            key = _finalise((key ^ word64) + np.uint64(GOLDEN))
    return key


def draw(keys: np.ndarray, count: int) -> np.ndarray:
    """The first `count` 64-bit numbers of each key's stream: uint64 [..., count]. They differ from one
    another.
    """
    steps = np.arange(1, count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        return _finalise(np.asarray(keys, np.uint64)[..., None] + steps * np.uint64(GOLDEN))


def uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """The first `count` uniform numbers in [0, 1) of each key's stream: float64 [..., count]."""
    return (draw(keys, count) >> np.uint64(11)) * 2.0**-53


def shuffled(key: "int | np.ndarray", numbers: np.ndarray) -> np.ndarray:
    """Distinct numbers from 0 up, in the order that the key stands for: int64 [len(numbers)].

    A number's place follows from its own hash, whatever the others are. Beside the result, memory holds a
    chunk: the low bits of each hash make way for the number itself, so that one sort in place does it all.
    """
    key = np.asarray(key, np.uint64)
    values = numbers.astype(np.uint64)
    mask = np.uint64((1 << int(values.max(initial=1)).bit_length()) - 1)
    with np.errstate(over="ignore"):
        for start in range(0, len(values), _CHUNK):
            own = values[start : start + _CHUNK]
            own |= _finalise(key + (own + np.uint64(1)) * np.uint64(GOLDEN)) & ~mask
    values.sort()
    values &= mask
    return values.view(np.int64)


def permutation(key: "int | np.ndarray", size: int) -> np.ndarray:
    """The permutation of `range(size)` that the key stands for: int64 [size]."""
    return shuffled(key, np.arange(size))
