"""Builders and fixtures that several test files share."""

import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import s3fs
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Tests compute little: threads of arithmetic would cost more than they bring, above all on a busy machine.
# Read by torch where it is imported first, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run; how long one takes depends on the machine, so there is no deadline.
settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("deterministic")

# A shell that starts the tests in the background has them, and whatever they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).resolve().parents[1]
SHARED = PROJECT.parent / "shared"


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """What a command run inside the tests' own process does to signals ends with the test: processes that
    later tests start would inherit a signal that is ignored.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real input beside the project; its absence is a failure in CI and a skip elsewhere."""
    if not SHARED.is_dir():
        message = f"no real input at {SHARED}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@dataclass(frozen=True)
class Done:
    """What a command that has ended left: its exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run a command of the project as a user would, in `tmp_path`: `run("shard", "--csv", path)` -> Done.

    One process runs inside the test's own, which saves importing everything again; `processes=2` is a
    torchrun job.
    """

    def run_command(command: str, *arguments: object, processes: int = 1, **environment: str) -> Done:
        words = [str(argument) for argument in arguments]
        if processes > 1:
            done = subprocess.run(
                [*launcher(processes, command), *words],
                cwd=tmp_path,
                env=command_environment(**environment),
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            return Done(done.returncode, done.stdout, done.stderr)
        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", [command, *words])
            for name, value in {"PYTHONPATH": str(PROJECT), **environment}.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                runpy.run_module(f"pipeline.{command}", run_name="__main__", alter_sys=True)
        code = ended.value.code
        printed = capfd.readouterr()
        return Done(code if isinstance(code, int) else int(code is not None), printed.out, printed.err)

    return run_command


def launcher(processes: int, command: str) -> list[str]:
    """How a user starts a command on a number of processes."""
    if processes == 1:
        return [sys.executable, "-m", f"pipeline.{command}"]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
    ]
    # "--" keeps torchrun from reading our flags as abbreviations of its own
    return [*torchrun, "-m", "--", f"pipeline.{command}"]


@pytest.fixture(scope="session")
def launch():
    """For tests that start processes themselves: (launcher, command_environment)."""
    return launcher, command_environment


def command_environment(**changes: str) -> dict[str, str]:
    """The environment in which tests run commands: one arithmetic thread each, as torchrun has it."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), **changes}


@pytest.fixture
def start(tmp_path):
    """`start("shard", "--csv", table, AWS_PROFILE="x")`: the command as a process with a session of its own,
    in `tmp_path`; whatever of the session is alive after the test is killed.
    """
    started: list[subprocess.Popen[str]] = []

    def start_command(command: str, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*launcher(1, command), *map(str, arguments)],
            cwd=tmp_path,
            env=command_environment(**environment),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start_command
    for leader in started:
        for process in processes_of_session(leader.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        leader.communicate()


@pytest.fixture(scope="session")
def session_processes() -> Callable[[int], list[int]]:
    """`session_processes(pid)`: the processes alive in the session that a started command leads."""
    return processes_of_session


def processes_of_session(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


@pytest.fixture
def browser() -> "Iterator[Browser]":
    """A real browser without a window (Debian's chromium, driven by playwright): `page = browser.new_page()`.

    It reaches this machine only. Its absence is a failure in CI and a skip elsewhere.
    """
    sync_api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        message = "no chromium on this machine: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    only_here = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", only_here])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def sample_shards(shared, tmp_path_factory) -> Path:
    """The real sample, sharded: folders `train` (225 samples in 3 shards), `valid` and `test` (26 each)."""
    folder = tmp_path_factory.mktemp("sample_shards")
    for split in ("train", "valid", "test"):
        arguments = ["--csv", shared / "pmc_sample" / f"{split}.csv", "--out", folder / split]
        subprocess.run(
            [sys.executable, "-m", "pipeline.shard", *map(str, arguments), "--samples-per-shard", "100"],
            env=command_environment(),
            check=True,
            capture_output=True,
        )
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory) -> Iterator[str]:
    """The address of an empty bucket on a real S3 server process on this machine; commands reach it by
    environment.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = open(tmp_path_factory.mktemp("s3") / "server.log", "w")  # noqa: SIM115
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    endpoint = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
                    break
                except Exception:
                    if time.monotonic() > deadline or server.poll() is not None:
                        raise
                    time.sleep(0.2)
            yield "s3://bucket"
        finally:
            server.kill()
            server.wait()
            log.close()
