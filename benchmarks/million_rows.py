"""Memory and start of packing a table of a million rows whose images lie in one zip, as PMC-OA is published.

    python benchmarks/million_rows.py --scratch /tmp/million
    python benchmarks/million_rows.py --scratch /tmp/million --rows 100000 --verify none

Makes a JSONL table and a zip of tiny images below one folder (both kept in the scratch folder for the next
run), packs them with `pipeline.shard`, and watches each of its processes. Flags that are not this script's
own go to the command. To hold: less than 500 MB in each process, and packing under way after 30 s. A shard
is written only once it is packed, so the first one's file in the output folder is a late sign of the start.
"""

import argparse
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

DISTINCT = 64
FOLDER = "images/"
ROLES = {"pipeline.shard": "command", "spawn_main": "worker", "resource_tracker": "helper"}
SAMPLING = 0.05  # seconds between two looks at the processes


def tiny_images() -> list[tuple[str, bytes]]:
    """(extension, bytes) of a few distinct images of some hundred bytes."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(DISTINCT):
        side = 8 + number % 8
        pixels = rng.integers(0, 256, (side, side), np.uint8)
        kind, extension = (("JPEG", "jpg"), ("PNG", "png"))[number % 2]
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        images.append((extension, file.getvalue()))
    return images


def image_name(row: int, extension: str) -> str:
    """A name of the kind that PMC-OA has."""
    return f"PMC{100000 + row // 4}_Fig{row % 4}_{row % 7}.{extension}"


def write_table(path: Path, images: list[tuple[str, bytes]], rows: int) -> None:
    """The table with PMC-OA's columns."""
    with open(path, "w", encoding="utf-8") as file:
        for row in range(rows):
            fields = {
                "image": image_name(row, images[row % DISTINCT][0]),
                "caption": f"Figure {row}: axial view of the abdomen with contrast, arrow at lesion. " * 2,
                "alignment_type": "Fig",
                "alignment_score": row % 1000 / 1000,
            }
            file.write(json.dumps(fields) + "\n")


def write_zip(path: Path, images: list[tuple[str, bytes]], members: int) -> None:
    """A stored zip with ZIP64's end records (zipfile itself would need minutes and gigabytes)."""
    checksums = [zlib.crc32(data) for _, data in images]
    directory = bytearray()
    with open(path, "wb", buffering=2**20) as file:
        offset = 0
        for number in range(members):
            extension, data = images[number % DISTINCT]
            name = (FOLDER + image_name(number, extension)).encode()
            # version, flags, method, time, date, checksum, sizes, name's length, no extra field
            common = struct.pack(
                "<HHHHHLLLHH",
                *(20, 0, 0, 0, 0x21),
                *(checksums[number % DISTINCT], len(data), len(data), len(name), 0),
            )
            local = b"PK\3\4" + common + name
            place = struct.pack("<HHHLL", 0, 0, 0, 0, offset)
            directory += b"PK\1\2" + struct.pack("<H", 45) + common + place + name
            file.write(local)
            file.write(data)
            offset += len(local) + len(data)
        file.write(directory)
        sizes = struct.pack("<QQQQ", members, members, len(directory), offset)
        file.write(b"PK\6\6" + struct.pack("<QHHLL", 44, 45, 45, 0, 0) + sizes)
        file.write(b"PK\6\7" + struct.pack("<LQL", 0, offset + len(directory), 1))
        file.write(b"PK\5\6" + struct.pack("<HHHHLLH", *(0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)))


@dataclass
class Memory:
    """A process's peaks in bytes: all that is resident, and that without pages of mapped files."""

    command: str
    resident: int
    anonymous: int


def look(pid: int, seen: dict[int, Memory]) -> None:
    """Bring the peaks of a process and all below it up to date."""
    try:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return
    if "VmHWM" in status:  # one that has ended has none
        anonymous = _kibibytes(status["RssAnon"]) + _kibibytes(status["RssShmem"])
        before = seen[pid].anonymous if pid in seen and seen[pid].command == command else 0
        seen[pid] = Memory(command, _kibibytes(status["VmHWM"]), max(before, anonymous))
    for child in children:
        look(int(child), seen)


def _kibibytes(field: str) -> int:
    return int(field.split()[0]) * 1024


def watch(command: list[str], out: Path) -> tuple[dict[int, Memory], float, float]:
    """Run the command: the peaks of its processes, seconds until a shard's file appeared, and in all."""
    seen: dict[int, Memory] = {}
    first = float("nan")
    begin = time.perf_counter()
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            look(process.pid, seen)
            if first != first and out.is_dir() and any(".tar" in name for name in os.listdir(out)):
                first = time.perf_counter() - begin
            time.sleep(SAMPLING)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seen, first, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scratch", required=True, type=Path, help="folder for the data and the output")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table, members of the zip")
    args, passed_on = parser.parse_known_args()
    folder = args.scratch / f"rows-{args.rows}"
    table, zipped, out = folder / "table.jsonl", folder / "images.zip", folder / "out"
    if not zipped.exists():
        folder.mkdir(parents=True, exist_ok=True)
        images = tiny_images()
        write_table(table, images, args.rows)
        write_zip(folder / "unfinished.zip", images, args.rows)
        os.replace(folder / "unfinished.zip", zipped)
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "pipeline.shard", f"--csv={table}", f"--images={zipped}", f"--out={out}"]
    seen, first, seconds = watch([*command, "--samples-per-shard=10000", *passed_on], out)
    shutil.rmtree(out)
    print("\n| process | peak resident | of it not mapped files |")
    print("| --- | --- | --- |")
    for memory in sorted(seen.values(), key=lambda memory: -memory.resident):
        role = next((role for mark, role in ROLES.items() if mark in memory.command), memory.command)
        print(f"| {role} | {memory.resident / 1e6:,.0f} MB | {memory.anonymous / 1e6:,.0f} MB |")
    print(f"\n{args.rows:,} rows: the first shard's file after {first:.1f} s, done after {seconds:.1f} s")
    print(f"({args.rows / seconds:,.0f} rows/s)")


if __name__ == "__main__":
    main()
