"""What is said about tars that others made: the samples that are left out, and what else is odd."""

import csv
import io
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.indexing.describe_shard import NO_CAPTION, NO_IMAGE, DescribedShard
from pipeline.wording import counted
from shards import MemberNames

REPEATED_ACROSS = "samples with the key of a sample in another shard"
_SHOWN = 10
_NEVER_IMAGES = {"json", "txt"}


def printable(text: str) -> str:
    """A text that a terminal or a file can take: whatever is not UTF-8 is written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def unusable_csv(described: Sequence[DescribedShard]) -> bytes:
    """Every sample that is left out: shard, number in the shard, key, reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["shard", "sample", "key", "reason"])
    for shard in described:
        for bad in shard.unusable:
            writer.writerow((shard.written.record.name, bad.sample, printable(bad.key), bad.reason))
    return text.getvalue().encode()


def unmapped_advice(described: Sequence[DescribedShard], names: MemberNames) -> list[str]:
    """For extensions that stand where images or captions are missing: how many samples, and which flag."""
    counts: dict[str, Counter[str]] = {NO_IMAGE: Counter(), NO_CAPTION: Counter()}
    for shard in described:
        for reason, extensions in shard.unmapped.items():
            counts[reason].update(extensions)
    advice = []
    for extension, count in counts[NO_IMAGE].most_common(_SHOWN):
        if extension.rpartition(".")[2] not in _NEVER_IMAGES:
            flag = f"--image-ext {','.join((*names.image_extensions, printable(extension)))}"
            advice.append(_mapping_line(extension, count, "an image", flag))
    for extension, count in counts[NO_CAPTION].most_common(_SHOWN):
        flag = "--caption-key KEY" if extension == "json" else f"--caption-ext {printable(extension)}"
        advice.append(_mapping_line(extension, count, "a caption", flag))
    dotted = [
        extension for extension, _ in counts[NO_IMAGE].most_common() if _ends_as_image(extension, names)
    ]
    if dotted:
        advice.append(
            f"a key ends at the first dot of a file's name, so .{printable(dotted[0])} is an extension: "
            "where such dots belong to keys, pack the tars again with other names"
        )
    return advice


def _ends_as_image(extension: str, names: MemberNames) -> bool:
    _, dot, last = extension.rpartition(".")
    return bool(dot) and last in names.image_extensions


def _mapping_line(extension: str, count: int, what: str, flag: str) -> str:
    shown = printable(extension)
    return f"no mapping for .{shown} ({counted(count, 'sample')} without {what}): give {flag} if it is {what}"


def describe_oddities(described: Sequence[DescribedShard], names: MemberNames) -> list[str]:
    """Lines for a person: samples left out by reason with an example of each, extensions without a mapping,
    and oddities of what was kept.
    """
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    oddities: Counter[str] = Counter()
    for shard in described:
        for bad in shard.unusable:
            reasons[bad.reason] += 1
            examples.setdefault(bad.reason, f"{bad.key} in {shard.written.record.name}")
        for what, (count, example) in shard.oddities.items():
            oddities[what] += count
            examples.setdefault(what, example)
    across, example = _repeated_across(described)
    if across:
        oddities[REPEATED_ACROSS] = across
        examples[REPEATED_ACROSS] = example
    lines = [f"left out: {counted(reasons.total(), 'sample')}"] if reasons else ["left out: no sample"]
    lines += [_line(reason, count, examples) for reason, count in reasons.most_common()]
    lines += [f"  {advice}" for advice in unmapped_advice(described, names)]
    if oddities:
        lines.append("odd, but kept:")
        lines += [_line(what, count, examples) for what, count in oddities.most_common()]
    return lines


def _line(what: str, count: int, examples: dict[str, str]) -> str:
    return f"  {count:>8,} {what}, such as {printable(examples[what])}"


def _repeated_across(described: Sequence[DescribedShard]) -> tuple[int, str]:
    """How many samples have a key that an earlier shard has, too, and where the first of them is."""
    own = [np.unique(shard.key_hashes) for shard in described]
    hashes = np.concatenate([*own, np.zeros(0, np.uint64)])
    shards = np.repeat(np.arange(len(own)), [len(keys) for keys in own])
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
    if not len(again):
        return 0, ""
    first = again[np.argmin(order[again])]
    earlier, later = (described[shards[order[place]]] for place in (first - 1, first))
    number = int(np.flatnonzero(later.key_hashes == hashes[order[first]])[0])
    record, other = later.written.record, earlier.written.record
    return len(again), f"sample {number:,} of {record.name}, whose key {other.name} has, too"
