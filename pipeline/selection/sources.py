"""The data sets that a selection is made from."""

from collections.abc import Sequence

from shards import Dataset, Folder, MemberNames, UsageError, open_dataset
from shards.references import make_reference


def open_sources(addresses: Sequence[str], out: Folder) -> list[Dataset]:
    """Open the data sets; UsageError where a shard comes twice, or where one of them lies in `out`."""
    sources = [open_dataset(address) for address in addresses]
    seen: dict[str, str] = {}
    for source in sources:
        for folder in {f.address: f for f in [source.folder, *source.folders]}.values():
            if not make_reference(out, folder):
                raise UsageError(
                    f"--out {out.address}: what --data {source.folder.address} is made of lies there; choose "
                    "another folder"
                )
        for number, record in enumerate(source.manifest.shards):
            place = source.shard_folder(number).locate(record.name)
            if record.sha256 in seen:
                raise UsageError(
                    f"{place} comes twice (its bytes are those of {seen[record.sha256]}), and so would each "
                    "of its samples: leave one of the data sets out of --data"
                )
            seen[record.sha256] = place
    return sources


def common_names(sources: Sequence[Dataset]) -> MemberNames:
    """Member names that mean the same for every source's samples as its own; UsageError where none do."""
    widest = max((source.manifest.member_names for source in sources), key=lambda n: len(n.image_extensions))
    for source in sources:
        names = source.manifest.member_names
        # A sample's image is the first of the extensions that it has, so a longer list may only go on.
        begins = widest.image_extensions[: len(names.image_extensions)] == names.image_extensions
        if not begins or _caption(names) != _caption(widest):
            raise UsageError(
                f"{source.folder.address} has other members for image and caption ({_describe(names)}) than "
                f"another --data ({_describe(widest)}), and a view has one rule for all: add --rewrite, "
                "which packs both alike"
            )
    return widest


def _caption(names: MemberNames) -> tuple[str, str | None, bool]:
    return names.caption_extension, names.caption_key, names.caption_lines


def _describe(names: MemberNames) -> str:
    return f"image {','.join(names.image_extensions)}; caption {names.caption_place}"
