"""What benchmarks/loader.py measures on: environments, repeated figures as files and shards, an S3 server."""

import csv
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import s3fs

BUCKET = "s3://bench"
SAMPLES_PER_SHARD = 250


def environment(packages: tuple[str, ...], scratch: Path) -> str:
    """The Python of an environment that has these packages; it is made where it is not there yet.

    A .pth file lets it see the running environment's packages behind its own: PyTorch, Pillow and the like
    are the same for all and not installed again for every peer, and a peer's own releases still come first.
    """
    if not packages:
        return sys.executable
    folder = scratch / "environments" / "+".join(packages)
    python, complete = folder / "bin/python", folder / "complete"
    if not complete.exists():
        print(f"installing {' '.join(packages)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        paths = {"base": str(folder), "platbase": str(folder)}
        own = Path(sysconfig.get_path("purelib", vars=paths))
        (own / "running_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        complete.touch()
    return str(python)


def make_samples(tables: list[str], images: Path, least: int, resize: int | None, folder: Path) -> None:
    """Fill a folder with shards/, images/ and rows.jsonl: the tables' figures repeated under other keys.

    resize: pixels of the shorter side that pipeline.shard makes larger images smaller to.
    """
    if (folder / "rows.jsonl").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    figures = [
        row
        for table in tables
        for row in csv.DictReader(Path(table).read_text(encoding="utf-8").splitlines(keepends=True))
    ]
    count = -(-least // len(figures)) * len(figures)
    with open(folder / "table.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number, row in enumerate(itertools.islice(itertools.cycle(figures), count)):
            writer.writerow([row["image"], f"{row['caption']} ({number})"])
    command = [sys.executable, "-m", "pipeline.shard", "--csv", folder / "table.csv", "--images", images]
    command += ["--out", folder / "shards", "--samples-per-shard", str(SAMPLES_PER_SHARD)]
    command += ["--resize", str(resize)] if resize else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = list(unpack(folder))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def unpack(folder: Path) -> Iterator[tuple[str, str]]:
    """Write the images of the shards as files; (name, caption) of each."""
    (folder / "images").mkdir()
    for shard in sorted((folder / "shards").glob("*.tar")):
        name = ""
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                data = file.read() if file else b""
                if member.name.endswith(".txt"):
                    yield name, data.decode()
                elif not member.name.endswith(".json"):
                    name = member.name
                    (folder / "images" / name).write_bytes(data)


@contextmanager
def s3_server(scratch: Path) -> Iterator[None]:
    """An S3 server on this machine with an empty bucket; the environment says where it is."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.update(settings)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with open(scratch / "s3_server.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                s3fs.S3FileSystem.clear_instance_cache()  # an earlier server was at another port
                s3fs.S3FileSystem().mkdir(BUCKET)
                break
            except Exception:
                if time.monotonic() > deadline or server.poll() is not None:
                    raise
                time.sleep(0.2)
        yield
    finally:
        for name in settings:
            del os.environ[name]
        server.kill()
        server.wait()


def upload(folder: Path, address: str) -> str:
    """Copy a folder to the S3 server; its address there."""
    readable = {"ACL": "public-read"}  # by curl, without credentials
    s3fs.S3FileSystem(s3_additional_kwargs=readable).put(f"{folder}/", f"{address}/", recursive=True)
    return address
