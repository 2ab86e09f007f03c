"""`pipeline.download` against a server with the hub's layout."""

import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.hub_server import HubServer

MEGABYTE = 1 << 20
FILES = {
    "images.zip": random.Random(1).randbytes(25 * MEGABYTE + 7),
    "pmc_oa.jsonl": b'{"image": "PMC1_F1.jpg", "caption": "a"}\n' * 100,
    "pmc_oa_beta.jsonl": b'{"image": "PMC2_F1.jpg", "caption": "b"}\n' * 90,
}


@pytest.fixture
def hub():
    with HubServer("axiong/pmc_oa", dict(FILES)) as server:
        yield server


@pytest.fixture
def start_download(start, hub, tmp_path):
    """`start_download("pmc-oa", …)`: the command, in `tmp_path`, with the server as its hub."""
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
    return lambda *arguments, **changes: start("download", *arguments, **{**settings, **changes})


@pytest.fixture
def download(start_download):
    """`download("pmc-oa", …)`: the command's exit code, output and errors."""

    def run_command(*arguments: object, **changes: str) -> tuple[int, str, str]:
        process = start_download(*arguments, **changes)
        printed, said = process.communicate(timeout=60)
        assert "Traceback" not in said, said
        return process.returncode, printed, said

    return run_command


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for(condition, seconds: float = 30):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def images_part(folder: Path) -> Path | None:
    return next(folder.glob("images.zip.*.part"), None)


@pytest.fixture
def half_way(hub, start_download, tmp_path):
    """A download that holds 10 MiB of the images (huggingface_hub writes that much at once), then waits."""
    hub.stalls_after = 12 * MEGABYTE
    job = start_download("pmc-oa")

    def has_written() -> bool:
        assert job.poll() is None, job.communicate()
        part = images_part(tmp_path / "data")
        return part is not None and part.stat().st_size >= 10 * MEGABYTE

    wait_for(has_written)
    hub.stalls_after = None
    return job


@pytest.mark.parametrize(("name", "table"), [("pmc-oa", "pmc_oa"), ("pmc-oa-beta", "pmc_oa_beta")])
def test_brings_the_table_and_the_images_and_says_how_to_pack_them(download, tmp_path, name, table):
    code, printed, said = download(name, "--out", "my data/")
    assert code == 0, said
    assert held(tmp_path / "my data") == {file: FILES[file] for file in (f"{table}.jsonl", "images.zip")}
    assert printed.splitlines()[-1] == (
        f"next: python -m pipeline.shard --csv 'my data/{table}.jsonl' --images 'my data/images.zip' "
        f"--out shards/{table} --split train=0.9,valid=0.05,test=0.05"
    )


def test_a_killed_download_goes_on_with_the_missing_bytes_only(hub, half_way, download, tmp_path):
    half_way.kill()
    half_way.wait()
    here = images_part(tmp_path / "data").stat().st_size
    hub.released.set()
    wait_for(lambda: hub.bytes_sent("images.zip") > 0)
    hub.sent.clear()
    code, _, said = download("pmc-oa")
    assert code == 0, said
    assert hub.sent == [("images.zip", here, len(FILES["images.zip"]) - here)]
    assert held(tmp_path / "data") == {name: FILES[name] for name in ("pmc_oa.jsonl", "images.zip")}


def test_complete_files_are_checked_and_not_fetched_again(hub, download, tmp_path):
    download("pmc-oa")
    hub.sent.clear()
    code, printed, _ = download("pmc-oa")
    assert (code, hub.sent, printed.count("sha256 as published")) == (0, [], 2)
    download("pmc-oa-beta")  # another table of the same images
    assert [name for name, *_ in hub.sent] == ["pmc_oa_beta.jsonl"]
    with open(tmp_path / "data" / "images.zip", "r+b") as file:
        file.write(b"changed")
    code, _, said = download("pmc-oa")
    assert code == 1
    assert "data/images.zip (26,214,407 bytes) is not the hub's file" in said
    assert "move it away" in said


def test_a_lost_connection_and_a_busy_server_are_overcome(hub, download, tmp_path):
    hub.cuts_after, hub.unavailable = 12 * MEGABYTE, 2
    code, _, said = download("pmc-oa")
    assert code == 0, said
    assert held(tmp_path / "data")["images.zip"] == FILES["images.zip"]
    (first, second) = [entry for entry in hub.sent if entry[0] == "images.zip"]
    assert (first[1], second[1] >= 10 * MEGABYTE) == (0, True)


def test_an_unknown_data_set_is_refused_with_the_known_ones(hub, download, tmp_path):
    code, _, said = download("pmc-ao")
    assert (code, hub.sent, (tmp_path / "data").exists()) == (2, [], False)
    assert "no data set 'pmc-ao': known are pmc-oa, pmc-oa-beta" in said


def test_a_disk_without_room_for_what_is_missing_is_said_before_anything_is_fetched(hub, download, tmp_path):
    hub.claimed_size = 1 << 50
    code, _, said = download("pmc-oa", "--out", "new/folder")
    assert (code, hub.sent, (tmp_path / "new").exists()) == (1, [], False)
    assert "2,251,799.81 GB are still to be fetched (pmc_oa.jsonl, images.zip)" in said
    assert f"GB are free on the disk of {tmp_path}: free some, or give another --out" in said


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (401, "GatedRepo", "accept the data set's terms on its page, and set HF_TOKEN"),
        (404, "RepoNotFound", "HF_ENDPOINT must name the hub or a full mirror of it"),
        (500, "", "check the network and its proxy, or set HF_ENDPOINT to a mirror"),
    ],
)
def test_a_refusal_of_the_hub_is_one_message_with_a_remedy(hub, download, status, code, remedy):
    hub.refusal = (status, code)
    exit_code, _, said = download("pmc-oa")
    assert exit_code == 1
    assert said.count("\n") == 1
    assert "error: data set axiong/pmc_oa: " in said
    assert hub.endpoint in said
    assert remedy in said


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "set HF_ENDPOINT to a mirror"),
        ({"HF_ENDPOINT": "no-address"}, "set HF_ENDPOINT to a mirror"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, so that nothing is fetched: unset it"),
    ],
)
def test_no_way_to_the_hub_is_one_message_with_a_remedy(download, settings, remedy):
    code, _, said = download("pmc-oa", **settings)
    assert (code, said.count("\n"), remedy in said) == (1, 1, True), said


def test_a_file_that_the_repository_lost_is_named(hub, download):
    del hub.files["pmc_oa.jsonl"]
    code, _, said = download("pmc-oa")
    assert code == 1
    assert "has no file pmc_oa.jsonl any more: it has images.zip, pmc_oa_beta.jsonl" in said


def test_damaged_bytes_never_get_the_files_name(hub, download, tmp_path):
    hub.damaged = True
    code, _, said = download("pmc-oa")
    assert (code, held(tmp_path / "data")) == (1, {})
    assert "has not the sha256 that its metadata gives" in said
    hub.damaged = False
    assert download("pmc-oa")[0] == 0


def test_bytes_of_an_older_version_are_not_taken_for_the_new_ones(hub, half_way, download, tmp_path):
    half_way.kill()
    half_way.wait()
    hub.files["images.zip"] = random.Random(2).randbytes(3 * MEGABYTE)
    code, _, said = download("pmc-oa")
    assert code == 0, said
    assert held(tmp_path / "data") == {name: hub.files[name] for name in ("pmc_oa.jsonl", "images.zip")}


def test_two_downloads_into_one_folder_do_not_mix(half_way, download):
    code, _, said = download("pmc-oa")
    assert (code, "another download is writing it" in said) == (1, True), said
    assert half_way.poll() is None


def test_a_full_disk_keeps_what_was_fetched(hub, launch, download, tmp_path):
    launcher, environment = launch
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 15000; exec "$@"', "-", *launcher(1, "download"), "pmc-oa"],
        cwd=tmp_path,
        env=environment(HF_ENDPOINT=hub.endpoint, HF_TOKEN=""),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert limited.returncode == 1
    assert "data/images.zip: cannot be written" in limited.stderr
    assert "free some disk or give another --out; what was fetched is kept" in limited.stderr
    assert limited.stderr.count("\n") == 1
    here = images_part(tmp_path / "data").stat().st_size
    assert here >= 10 * MEGABYTE
    hub.sent.clear()
    assert download("pmc-oa")[0] == 0
    assert hub.sent == [("images.zip", here, len(FILES["images.zip"]) - here)]
