"""A run whose `--logs` is an address: another machine finds its checkpoints and its log there."""

import json
import shutil

import pytest
import s3fs

from pipeline.checkpoint import Checkpoint


@pytest.fixture
def flags(sample_shards, s3) -> list[object]:
    flags = ["--train-data", sample_shards / "train", "--model", "tiny", "--global-batch-size", 24]
    flags += ["--log-every", 1, "--save-every", 2, "--keep-last", 2, "--seed", 1]
    return [*flags, "--logs", f"{s3}/runs", "--name", "far", "--resume", "auto"]


def test_another_machine_goes_on_with_a_run_on_s3(run, flags, s3, tmp_path):
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    place = f"{s3.removeprefix('s3://')}/runs/far"
    first = run("train", *flags, "--epochs", 5, "--steps", 5)
    assert first.returncode == 0, first.stderr
    assert "logs are written to runs/s3/bucket/runs/far, and to s3://bucket/runs/far" in first.stderr
    kept = {path.rpartition("/")[2] for path in files.ls(f"{place}/checkpoints", refresh=True)}
    assert kept == {"step-00000004.pt", "step-00000005.pt", "latest", "saved.json"}
    # The newest is damaged there, and this machine is another one.
    data = bytearray(files.cat_file(f"{place}/checkpoints/step-00000005.pt"))
    data[len(data) // 3] ^= 1
    files.pipe_file(f"{place}/checkpoints/step-00000005.pt", bytes(data))
    shutil.rmtree(tmp_path / "runs")
    again = run("train", *flags, "--epochs", 5, "--steps", 7)
    assert again.returncode == 0, again.stderr
    assert (
        "passed over: s3://bucket/runs/far/checkpoints/step-00000005.pt: its content and its" in again.stderr
    )
    assert "going on from s3://bucket/runs/far/checkpoints/step-00000004.pt: step 4" in again.stderr
    assert Checkpoint.load(f"{s3}/runs/far/checkpoints/latest").step == 7
    lines = files.cat_file(f"{place}/metrics.jsonl").decode().splitlines()
    assert [entry["step"] for entry in map(json.loads, lines) if entry["kind"] == "train"] == list(
        range(1, 8)
    )
    assert any("tfevents" in path for path in files.ls(f"{place}/tensorboard", refresh=True))
    shown = run("export", "--checkpoint", f"{s3}/runs/far/checkpoints/latest", "--out", "exported")
    assert shown.returncode == 0, shown.stderr


@pytest.mark.slow
def test_a_run_with_fsdp_on_s3_goes_on_in_one_process(run, flags, s3):
    """From checkpoints in parts, of which those that need not stay are gone, and the newest is damaged."""
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    place = f"{s3.removeprefix('s3://')}/runs/shared/checkpoints"
    flags = [*flags, "--name", "shared", "--epochs", 5]
    first = run("train", *flags, "--fsdp", "--steps", 7, processes=2)
    assert first.returncode == 0, first.stderr
    kept = {path.rpartition("/")[2] for path in files.ls(place, refresh=True)}
    assert kept == {"step-00000006", "step-00000007", "latest", "saved.json"}
    files.pipe_file(f"{place}/step-00000007/part-00001.bin", b"not what was written")
    again = run("train", *flags, "--steps", 8)
    assert again.returncode == 0, again.stderr
    assert f"passed over: {s3}/runs/shared/checkpoints/step-00000007: the content of part-" in again.stderr
    assert f"going on from {s3}/runs/shared/checkpoints/step-00000006: step 6" in again.stderr
    shown = run("export", "--checkpoint", f"{s3}/runs/shared/checkpoints/step-00000006", "--out", "exported")
    assert shown.returncode == 0, shown.stderr
