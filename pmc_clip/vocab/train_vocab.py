"""Train a WordPiece vocabulary on captions, one per line.

    python -m pmc_clip.vocab.train_vocab captions.txt --out my_vocabulary
    python -m pmc_clip.vocab.train_vocab captions.txt --out my_vocabulary --size 30000

Byte-pair merges by frequency (Sennrich et al. 2016) over BERT's words, written in WordPiece's form. The
trainer of the `tokenizers` library does the same faster, but breaks ties by the order of a hash map: its
result differs from run to run. Here equal counts go by spelling, so that the same captions always give the
same file.
"""

import argparse
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from pmc_clip.tokenizer import SPECIAL_PIECES, wordpiece_splitter

Pair = tuple[str, str]


def train_vocab(captions: Iterable[str], size: int, min_character_count: int = 10) -> list[str]:
    """At most `size` pieces: special ones, characters at a word's start and inside, merges in their order."""
    words = _count_words(captions)
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    alphabet = sorted(character for character, count in characters.items() if count >= min_character_count)
    known = set(alphabet)
    spelled = [
        ([word[0]] + [f"##{character}" for character in word[1:]], count)
        for word, count in sorted(words.items())
        if known.issuperset(word)
    ]
    inside = sorted({piece for pieces, _ in spelled for piece in pieces if piece.startswith("##")})
    vocabulary = dict.fromkeys([*SPECIAL_PIECES, *alphabet, *inside])
    for piece in _merges(spelled):
        if len(vocabulary) >= size:
            break
        vocabulary[piece] = None
    return list(vocabulary)


def _count_words(captions: Iterable[str]) -> Counter[str]:
    splitter = wordpiece_splitter()
    words: Counter[str] = Counter()
    for caption in captions:
        text = splitter.normalizer.normalize_str(caption)
        words.update(word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(text))
    return words


def _merges(spelled: list[tuple[list[str], int]]) -> Iterable[str]:
    """New pieces by falling frequency; `spelled` (pieces of a word, its count) is merged in place."""
    counts: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, (pieces, count) in enumerate(spelled):
        for pair in pairwise(pieces):
            counts[pair] += count
            places[pair].add(index)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    while heap:
        negative, pair = heapq.heappop(heap)
        if counts[pair] != -negative:  # an old entry; the heap holds a newer one
            continue
        if counts[pair] < 2:
            return
        merged = pair[0] + pair[1].removeprefix("##")
        yield merged
        changed: set[Pair] = set()
        for index in places.pop(pair):
            pieces, count = spelled[index]
            for old in pairwise(pieces):
                counts[old] -= count
                changed.add(old)
            _merge_in_place(pieces, pair, merged)
            for new in pairwise(pieces):
                counts[new] += count
                places[new].add(index)
                changed.add(new)
        for other in changed:
            if counts[other] > 0:
                heapq.heappush(heap, (-counts[other], other))


def _merge_in_place(pieces: list[str], pair: Pair, merged: str) -> None:
    start = 0
    while start < len(pieces) - 1:
        if (pieces[start], pieces[start + 1]) == pair:
            pieces[start : start + 2] = [merged]
        start += 1


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(description="Train a WordPiece vocabulary on captions, one per line.")
    parser.add_argument("captions", type=Path, help="text file, UTF-8, one caption per line")
    parser.add_argument("--out", type=Path, required=True, help="folder that vocab.txt is written to")
    parser.add_argument("--size", type=int, default=8000, help="entries of the vocabulary")
    arguments = parser.parse_args()
    with arguments.captions.open(encoding="utf-8") as captions:
        vocabulary = train_vocab(captions, arguments.size)
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "vocab.txt"
    file.write_text("".join(f"{piece}\n" for piece in vocabulary), encoding="utf-8")
    print(f"{file}: {len(vocabulary)} entries")


if __name__ == "__main__":
    main()
