"""Clients of S3 for the loader's access pattern: ranged reads of whole blocks in random order, on threads.

    python benchmarks/object_stores.py --scratch /tmp/object_stores
    python benchmarks/object_stores.py --scratch /tmp/object_stores --in-flight 64 --tls

Each client, in a process and (but for this project's) an environment of its own, reads blocks of 3 MiB from
1 GB of objects, 8 at a time. In S3's place stands a small server in another process that answers ranged GETs
straight out of the page cache (sendfile; with --tls from OpenSSL), whoever asks: what differs is the client.
Said of each: its rate, its CPU seconds per GB, and how long a block takes; then its rate beside a thread of
busy Python code, such as a training process has, and what is left of that thread's own speed.

`Folder.read_range` is what this project reads with; `http.client` is a bare, unsigned client of Python's own.
"""

import argparse
import json
import os
import random
import re
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loader_setups import environment

BLOCK = 3 * 2**20
OBJECTS, OBJECT_BLOCKS = 4, 85
Read = Callable[[str, int], object]  # (object, first byte) -> the block's bytes


def serve(folder: Path, port: int, *, tls: bool) -> None:
    """Answer ranged GETs of /bucket/<object>."""
    listener = socket.create_server(("127.0.0.1", port), backlog=256)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if tls:
        context.load_cert_chain(folder / "server.pem", folder / "server.key")

    def answer(connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = context.wrap_socket(connection, server_side=True) if tls else connection
            lines = connection.makefile("rb")
            while request := lines.readline():
                method, address = request.decode().split()[:2]
                name, asked = address.split("?")[0].rsplit("/", 1)[1], None
                while line := lines.readline().strip():
                    asked = re.search(rb"(?i)^range: bytes=(\d+)-(\d+)", line) or asked
                with open(folder / name, "rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked else (0, size - 1)
                    connection.sendall(
                        b'HTTP/1.1 206 Partial Content\r\nETag: "1"\r\nContent-Range: bytes %d-%d/%d\r\n'
                        b"Content-Length: %d\r\nLast-Modified: Tue, 15 Nov 1994 12:45:26 GMT\r\n\r\n"
                        % (first, last, size, last + 1 - first)
                    )
                    if method == "GET":
                        connection.sendfile(file, first, last + 1 - first)
        except OSError:
            pass  # the client has ended
        finally:
            connection.close()

    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def read_by_folder(endpoint: str, in_flight: int) -> Read:
    from shards import Folder

    folder = Folder("s3://bucket")
    return lambda name, start: folder.read_range(name, start, BLOCK)


def read_by_s3fs(endpoint: str, in_flight: int) -> Read:
    import s3fs

    fs = s3fs.S3FileSystem(config_kwargs={"max_pool_connections": in_flight})
    return lambda name, start: fs.cat_file(f"bucket/{name}", start=start, end=start + BLOCK)


def read_by_obstore_fsspec(endpoint: str, in_flight: int) -> Read:
    from obstore.fsspec import FsspecStore

    fs = FsspecStore("s3", endpoint=endpoint, client_options={"allow_http": True})
    return lambda name, start: fs.cat_file(f"bucket/{name}", start=start, end=start + BLOCK)


def read_by_botocore(endpoint: str, in_flight: int) -> Read:
    from botocore.config import Config
    from botocore.session import Session

    client = Session().create_client("s3", config=Config(max_pool_connections=in_flight))

    def read(name: str, start: int) -> bytes:
        answer = client.get_object(Bucket="bucket", Key=name, Range=f"bytes={start}-{start + BLOCK - 1}")
        return answer["Body"].read()

    return read


def read_by_s3torchconnector(endpoint: str, in_flight: int) -> Read:
    from s3torchconnector import S3ClientConfig, S3ReaderConstructor
    from s3torchconnector._s3client import S3Client

    settings = S3ClientConfig(force_path_style=True)
    client = S3Client(region="us-east-1", endpoint=endpoint, s3client_config=settings)
    ranges = S3ReaderConstructor.range_based(buffer_size=0)

    def read(name: str, start: int) -> bytearray:
        reader = client.get_object("bucket", name, reader_constructor=ranges)
        reader.seek(start)
        block = bytearray(BLOCK)
        assert reader.readinto(block) == BLOCK
        return block

    return read


def read_by_http_client(endpoint: str, in_flight: int) -> Read:
    import http.client

    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    kind, _, address = endpoint.partition("://")
    own = threading.local()

    def read(name: str, start: int) -> bytes:
        if not hasattr(own, "connection"):
            own.connection = kinds[kind](address)
        own.connection.request(
            "GET", f"/bucket/{name}", headers={"Range": f"bytes={start}-{start + BLOCK - 1}"}
        )
        return own.connection.getresponse().read()

    return read


CLIENTS: dict[str, tuple[Callable[[str, int], Read], tuple[str, ...]]] = {
    "Folder.read_range": (read_by_folder, ()),
    "s3fs": (read_by_s3fs, ()),
    "botocore": (read_by_botocore, ()),
    "obstore's fsspec store": (read_by_obstore_fsspec, ()),
    "s3torchconnector": (read_by_s3torchconnector, ("s3torchconnector==1.5.0",)),
    "http.client": (read_by_http_client, ()),
}


def measure(client: str, endpoint: str, in_flight: int, blocks: int, *, busy: bool) -> dict[str, float]:
    """What one client does, in this process."""
    read = CLIENTS[client][0](endpoint, in_flight)
    places = [(f"{number}", block * BLOCK) for number in range(OBJECTS) for block in range(OBJECT_BLOCKS)]
    chosen = random.Random(0).choices(places, k=blocks)
    seconds: list[float] = []

    def read_one(place: tuple[str, int]) -> None:
        begin = time.perf_counter()
        block = read(*place)
        assert len(block) == BLOCK
        seconds.append(time.perf_counter() - begin)

    turns, ended = [0], threading.Event()

    def be_busy() -> None:
        while not ended.is_set():
            turns[0] += sum(range(100)) > 0

    alone = 1.0
    if busy:
        threading.Thread(target=be_busy, daemon=True).start()
        time.sleep(1.0)
        alone = float(turns[0])
    with ThreadPoolExecutor(in_flight) as threads:
        list(threads.map(read_one, chosen[:in_flight]))  # connections are made, credentials found
        seconds.clear()
        before, begin, first_turn = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), turns[0]
        list(threads.map(read_one, chosen))
        took, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    ended.set()
    gigabytes = blocks * BLOCK / 1e9
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "rate": gigabytes * 1e3 / took,
        "cpu": cpu / gigabytes,
        "latency": statistics.median(seconds) * 1e3,
        "left": (turns[0] - first_turn) / took / alone,
    }


def make_certificates(scratch: Path) -> None:
    """An authority, and a certificate of it for this machine."""
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
    signed = ["-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial"]
    (scratch / "names").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    for command in (
        ["req", "-x509", *new, "-keyout", "authority.key", "-out", "authority.pem", "-subj", "/CN=authority"],
        ["req", *new[:-2], "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server"],
        [
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-out",
            "server.pem",
            "-days",
            "30",
            "-extfile",
            "names",
            *signed,
        ],
    ):
        subprocess.run(["openssl", *command], cwd=scratch, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scratch", type=Path, required=True, help="folder for objects and environments")
    parser.add_argument("--in-flight", type=int, default=8, help="reads at a time")
    parser.add_argument("--blocks", type=int, default=400, help="blocks of 3 MiB that each reads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tls", action="store_true", help="over https, as from S3 itself")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--busy", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.scratch, options.serve, tls=options.tls)
    if options.measure:
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        found = measure(options.measure, endpoint, options.in_flight, options.blocks, busy=options.busy)
        print(json.dumps(found), flush=True)
        os._exit(0)  # some clients do not survive the end of an interpreter that is busy
    options.scratch.mkdir(parents=True, exist_ok=True)
    for number in range(OBJECTS):
        (options.scratch / f"{number}").write_bytes(os.urandom(OBJECT_BLOCKS * BLOCK))
    make_certificates(options.scratch)
    compare(options)


def compare(options: argparse.Namespace) -> None:
    """Measure everybody in turn, some rounds, and print the table of medians."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    authority = str(options.scratch.resolve() / "authority.pem")
    variables = {
        **os.environ,
        "AWS_ENDPOINT_URL": f"http{'s' if options.tls else ''}://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CA_BUNDLE": authority,
        "SSL_CERT_FILE": authority,
    }
    shared = ["--scratch", str(options.scratch), *(["--tls"] if options.tls else [])]
    server = subprocess.Popen([sys.executable, __file__, *shared, "--serve", str(port)])
    results: dict[tuple[str, bool], list[dict[str, float]]] = {}
    try:
        for _ in range(options.rounds):
            for client in CLIENTS:
                for busy in (False, True):
                    blocks = options.blocks // (8 if busy else 1)
                    command = [environment(CLIENTS[client][1], options.scratch), __file__, *shared]
                    command += ["--measure", client, "--in-flight", str(options.in_flight)]
                    command += ["--blocks", str(blocks)]
                    command += ["--busy"] if busy else []
                    done = subprocess.run(
                        command, env=variables, check=True, stdout=subprocess.PIPE, timeout=120
                    )
                    results.setdefault((client, busy), []).append(json.loads(done.stdout))
    finally:
        server.kill()

    def median(client: str, busy: bool, what: str) -> float:
        return statistics.median(result[what] for result in results[client, busy])

    print("| | MB/s | CPU s/GB | ms a block | MB/s beside busy Python | speed left to that |")
    print("| --- | --- | --- | --- | --- | --- |")
    for client in CLIENTS:
        alone = [median(client, False, what) for what in ("rate", "cpu", "latency")]
        beside = [median(client, True, what) for what in ("rate", "left")]
        print(
            f"| {client} | {alone[0]:,.0f} | {alone[1]:.2f} | {alone[2]:.0f} | {beside[0]:,.0f} | "
            f"{beside[1]:.0%} |"
        )


if __name__ == "__main__":
    main()
