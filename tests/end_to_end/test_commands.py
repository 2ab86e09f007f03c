"""The main path on real figures, and what its commands say of bad input."""

import io
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shards import Folder, write_manifest, write_shard


@pytest.fixture(scope="module")
def trained(sample_shards, tmp_path_factory):
    """A short run on the real sample: its folder."""
    logs = tmp_path_factory.mktemp("runs")
    flags = [
        "--train-data",
        sample_shards / "train",
        "--val-data",
        sample_shards / "valid",
        "--model",
        "tiny",
        "--mlm",
    ]
    flags += [
        "--batch-size",
        32,
        "--epochs",
        1,
        "--lr",
        1e-3,
        "--logs",
        logs,
        "--name",
        "short",
        "--log-every",
        2,
    ]
    subprocess.run([sys.executable, "-m", "pipeline.train", *map(str, flags)], check=True)
    return logs / "short"


def test_a_run_leaves_what_is_promised(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "tensorboard", "checkpoints"}
    saved = {path.name for path in (trained / "checkpoints").iterdir()}
    assert saved == {"step-00000008.pt", "latest", "saved.json"}
    assert (trained / "checkpoints" / "latest").read_text() == "step-00000008.pt\n"
    config = json.loads((trained / "config.json").read_text())
    assert (config["lr"], config["run"]["global_batch"], config["model"]) == (1e-3, 32, "tiny")
    checkpoint = torch.load(trained / "checkpoints" / "step-00000008.pt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if name.startswith("module.")]
    assert checkpoint["samples_seen"] == 256
    entries = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if entry["kind"] == "train"] == [2, 4, 6, 8]
    assert entries[-1]["kind"] == "valid"
    assert 0 <= entries[-1]["image_to_text_recall_at_10"] <= 1
    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [2, 4, 6, 8]
    assert {"train/mlm_loss", "train/learning_rate", "valid/image_to_text_recall_at_10"} <= set(
        board.Tags()["scalars"]
    )


def test_rate_busy_time_and_queue_of_every_loader_stage_are_logged_with_a_verdict(trained):
    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    stages = {"fetch_mb_per_second", "fetch_busy", "fetch_wait", "mb_ahead", "parse_busy", "decode_busy"}
    stages |= {"text_busy", "samples_per_second", "wait", "buffers_full", "batches_ready"}
    assert {f"loader/{name}" for name in stages} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("loader/decode_busy")] == [2, 4, 6, 8]
    entries = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    verdicts = [entry["verdict"] for entry in entries if entry["kind"] == "loader"]
    assert len(verdicts) == 4
    assert all(re.match(r"training waits \d+% on the loader: ", verdict) for verdict in verdicts)


def test_loss_falls(trained):
    losses = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in losses if entry["kind"] == "train"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_evaluation_gives_the_figures_of_the_last_validation(
    run, trained, sample_shards, tmp_path, processes
):
    flags = ["--data", sample_shards / "valid", "--checkpoint", trained / "checkpoints" / "latest"]
    done = run("evaluate", *flags, "--out", "out", "--task", "retrieval", "mlm", processes=processes)
    assert done.returncode == 0, done.stderr
    assert "R@10" in done.stdout
    assert "chance" in done.stdout
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["pairs"] == 26
    validation = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    for name, value in validation.items():
        if name not in ("kind", "step", "samples_seen"):
            assert found["metrics"][name] == pytest.approx(value, abs=1e-6), name
    assert "<html" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_parts_the_sigmoid_loss_and_weights_by_code_go_together(run, sample_shards, tmp_path, processes):
    data = ["--train-data", sample_shards / "train", "--val-data", sample_shards / "valid"]
    flags = ["--model", "tiny", "--mlm", "--loss", "siglip", "--loss-weight", "5", "--mask-padding"]
    flags += [
        "--ignore-same-captions",
        "--accum",
        3,
        "--global-batch-size",
        16,
        "--lr",
        1e-3,
        "--log-every",
        1,
    ]
    done = run("train", *data, *flags, "--steps", 6, "--name", "s", processes=processes)
    assert done.returncode == 0, done.stderr
    assert "loss 0.33 × siglip + 0.66 × masked tokens" in done.stderr
    entries = [json.loads(line) for line in (tmp_path / "runs/s/metrics.jsonl").read_text().splitlines()]
    trained = [entry for entry in entries if entry["kind"] == "train"]
    assert trained[0]["logit_bias"] == pytest.approx(-10, abs=0.01)
    for entry in trained:
        parts = 0.33 * entry["match_loss"] + 0.66 * entry["mlm_loss"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-5)
    assert trained[-1]["loss"] < trained[0]["loss"]
    checkpoint = torch.load(tmp_path / "runs/s/checkpoints/step-00000006.pt", weights_only=True)
    assert checkpoint["model"]["init_logit_bias"] == -10
    assert checkpoint["model"]["text_cfg"]["mask_padding"] is True
    found = run("evaluate", "--data", sample_shards / "valid", "--checkpoint", "runs/s/checkpoints")
    assert found.returncode == 0, found.stderr


def test_published_weights_are_evaluated_and_trained_on(run, sample_shards, golden_file, tmp_path):
    checkpoint, model = golden_file
    done = run("evaluate", "--data", sample_shards / "valid", "--checkpoint", checkpoint, "--model", model)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "evaluation" / "valid-checkpoint" / "metrics.json").read_text())
    assert (figures["checkpoint"], figures["pairs"]) == (str(checkpoint), 26)
    assert "step" not in figures

    data = ["--train-data", sample_shards / "train", "--model", model, "--mlm", "--mask-padding"]
    flags = ["--pretrained", checkpoint, "--lr", 1e-12, "--steps", 1, "--batch-size", 8, "--name", "on"]
    done = run("train", *data, *flags, "--loss", "siglip")
    assert done.returncode == 0, done.stderr
    assert f"starting from {checkpoint} (published layout)" in done.stderr
    assert "logit_scale and logit_bias begin anew" in done.stderr
    trained = torch.load(tmp_path / "runs/on/checkpoints/step-00000001.pt", weights_only=True)["state_dict"]
    published = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert float(trained["logit_bias"]) == pytest.approx(-10)
    for name in (
        "text_projection",
        "mlm_projection",
        "visual.conv1.weight",
        "text_encoder.encoder.layer.0.output.dense.weight",
    ):
        torch.testing.assert_close(trained[name], published[f"module.{name}"], rtol=1e-5, atol=1e-6)
    refused = run(
        "evaluate",
        "--data",
        sample_shards / "valid",
        "--checkpoint",
        "runs/on/checkpoints",
        "--model",
        "tiny",
    )
    fail(refused, 2, "--model tiny: ")


@pytest.fixture
def golden_file(shared, tmp_path):
    """A small checkpoint of the published code, and its model's config: two paths."""
    folder = shared / "golden" / "tiny_modified"
    told = json.loads((folder / "config.json").read_text())
    told["model"]["text_cfg"] |= {"bert": told["bert"], "tokenizer": str(folder / "bert")}
    (tmp_path / "golden.json").write_text(json.dumps(told["model"]))
    return folder / "checkpoint.pt", tmp_path / "golden.json"


def test_the_whole_job_runs_over_s3(run, sample_shards, tmp_path, s3):
    for split in ("train", "valid"):
        source, target = Folder(sample_shards / split), Folder(f"{s3}/whole/{split}")
        for name in source.names():
            target.write(name, source.read(name))
    local = run(
        "stream", "--data", sample_shards / "train", "--keys", "a.tsv", "--checksums", "--batch-size", 25
    )
    remote = run(
        "stream", "--data", f"{s3}/whole/train", "--keys", "b.tsv", "--checksums", "--batch-size", 25
    )
    assert (local.returncode, remote.returncode) == (0, 0), remote.stderr
    assert "samples/s" in remote.stdout
    assert (tmp_path / "a.tsv").read_text() == (tmp_path / "b.tsv").read_text()
    data = ["--train-data", f"{s3}/whole/train", "--val-data", f"{s3}/whole/valid"]
    done = run("train", *data, "--model", "tiny", "--batch-size", 16, "--steps", 2, "--name", "s3")
    assert done.returncode == 0, done.stderr
    evaluated = run("evaluate", "--data", f"{s3}/whole/valid", "--checkpoint", "runs/s3/checkpoints/latest")
    assert evaluated.returncode == 0, evaluated.stderr
    assert (tmp_path / "runs" / "s3" / "evaluation" / "valid-step-00000002" / "report.html").exists()


def fail(done, code: int, message: str) -> None:
    assert (done.returncode, message in done.stderr, "Traceback" in done.stderr) == (code, True, False), (
        done.stderr
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "RN5O"], "RN5O"),
        (["--batch-size", "0"], "--batch-size 0: it must be at least 1"),
        (["--batch-size", "8", "--global-batch-size", "8"], "say the same thing twice"),
        (["--batch-size", "300"], "fewer than a global batch of 300"),
        (["--mask-ratio", "1.5"], "--mask-ratio 1.5"),
        (["--lr", "0"], "--lr 0.0: it must be above 0"),
        (["--resume", "nothing.pt"], "nothing.pt: no such checkpoint"),
        (["--val-data", "nowhere"], "nowhere: no data set here"),
        (["--lr", "nan"], "--lr nan: it must be above 0"),
        (["--beta1", "1"], "--beta1 1.0: it must be at least 0 and below 1"),
        (["--wd", "-1"], "--wd -1.0: it must be at least 0"),
        (["--name", "../x"], "--name ../x: a run's name is one folder's name"),
        (["--learning-rate", "1"], "Unrecognized"),
        (["--accum", "0"], "--accum 0: it must be at least 1"),
        (["--accum", "9", "--batch-size", "8"], "--accum 9: a process's batch has 8 samples"),
        (["--loss", "triplet"], "triplet"),
        (["--loss-weights", "half", "--mlm"], "--loss-weights: loss weights 'half': give two numbers"),
        (["--loss-weight", "7", "--mlm"], "--loss-weights: loss weights '7': give two numbers"),
        (["--loss-weights", "1,-1", "--mlm"], "--loss-weights: loss weights 1,-1"),
        (["--loss-weights", "0.7,0.3"], "--loss-weights 0.7,0.3: the second number is of masked-token"),
        (["--pretrained", "PMC_CLIP:gamma"], "PMC_CLIP:gamma: neither a file or folder, nor one of the tags"),
    ],
)
def test_train_refuses_what_cannot_be(run, sample_shards, flags, message):
    fail(
        run("train", "--train-data", sample_shards / "train", "--model", "tiny", "--steps", 1, *flags),
        2,
        message,
    )


def test_without_a_compiler_compiled_training_is_refused(run, sample_shards):
    flags = ["--train-data", sample_shards / "train", "--model", "tiny", "--compile"]
    fail(run("train", *flags, CXX="no-such-compiler"), 2, "--compile needs a C++ compiler")


def test_unknown_model_names_the_known_ones(run, sample_shards):
    done = run("train", "--train-data", sample_shards / "train", "--model", "huge")
    fail(done, 2, "tiny")
    assert "RN50_fusion4" in done.stderr


@pytest.mark.slow
def test_batch_that_processes_cannot_share_names_the_nearest(run, sample_shards):
    flags = ["--train-data", sample_shards / "train", "--model", "tiny", "--global-batch-size", 32]
    done = run("train", *flags, processes=3)
    assert done.returncode != 0
    assert "the nearest that can is --global-batch-size 33" in done.stderr


def test_a_second_run_under_one_name_needs_resume(run, trained, sample_shards):
    flags = ["--train-data", sample_shards / "train", "--model", "tiny", "--mlm", "--name", "short"]
    fail(run("train", *flags, "--logs", trained.parent), 2, "holds a run already")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train-data", "{valid}"], "is of a run on another data set"),
        (["--seed", "9"], "give --seed 0"),
        (["--lanes", "10"], "give --lanes 384"),
        (["--model", "small"], "is of another model"),
        (["--loss", "siglip"], "they differ in init_logit_bias, init_logit_scale"),
        (["--no-mlm"], "was trained with --mlm"),
    ],
)
def test_checkpoint_of_another_run_is_refused(run, trained, sample_shards, flags, message):
    own = {
        "--train-data": str(sample_shards / "train"),
        "--model": "tiny",
        "--resume": str(trained / "checkpoints/latest"),
    }
    mlm = ["--mlm"] if flags != ["--no-mlm"] else []
    if mlm:
        own[flags[0]] = flags[1].format(valid=sample_shards / "valid")
    arguments = [part for pair in own.items() for part in pair]
    fail(run("train", *arguments, *mlm, "--batch-size", 16, "--steps", 9), 2, message)


@pytest.mark.parametrize("damage", ["cut", "text", "other"])
def test_damaged_checkpoint_is_said(run, trained, sample_shards, tmp_path, damage):
    path = tmp_path / "c.pt"
    whole = (trained / "checkpoints" / "step-00000008.pt").read_bytes()
    if damage == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(whole[: len(whole) // 3] if damage == "cut" else b"not a checkpoint")
    done = run("evaluate", "--data", sample_shards / "valid", "--checkpoint", path)
    message = "does not fit the model: missing: " if damage == "other" else "not a whole checkpoint"
    fail(done, 2 if damage == "other" else 1, f"{path}: {message}")


def test_truncated_shard_stops_training_with_its_name(run, sample_shards, tmp_path):
    shutil.copytree(sample_shards / "train", tmp_path / "cut")
    shard = tmp_path / "cut" / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:3_000_000])
    done = run("train", "--train-data", "cut", "--model", "tiny", "--batch-size", 32, "--epochs", 1)
    fail(done, 1, "train-000001.tar: changed since the manifest was written")
    assert "found 3,000,000" in done.stderr


def test_altered_shard_stops_the_stream_with_its_name(run, sample_shards, tmp_path):
    shutil.copytree(sample_shards / "train", tmp_path / "bad")
    shard = tmp_path / "bad" / "train-000002.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    fail(run("stream", "--data", "bad", "--on-bad-sample", "fail"), 1, "the shard was altered")


def test_stream_refuses_what_cannot_be(run, sample_shards, monkeypatch):
    data = ["--data", sample_shards / "train"]
    fail(run("stream", "--data", "nowhere"), 2, "nowhere: no data set here")
    fail(run("stream", *data, "--start", "-1"), 2, "--start -1")
    fail(run("stream", *data, "--image-size", "0"), 2, "--image-size 0: it must be at least 1")
    fail(run("stream", *data, "--crop-scale", "7"), 2, "--crop-scale 7.0")
    fail(run("stream", *data, "--batches", "0"), 2, "--batches 0: it must be at least 1")
    fail(run("stream", *data, "--keys", "s3://bucket/keys"), 2, "only a path on this machine")
    fail(run("stream", *data, "--checksums"), 2, "--keys")
    fail(run("stream", *data, RANK="3", WORLD_SIZE="2"), 2, "contradict")


def test_commands_from_a_folder_that_holds_data_called_shards(launch, sample_shards, tmp_path):
    """`shards/` is both a package of ours and where data goes by default: neither may hide the other."""
    launcher, environment = launch
    shutil.copytree(sample_shards / "valid", tmp_path / "shards" / "valid")
    command = [*launcher(1, "stream"), "--data", "shards/valid", "--batch-size", "13"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "26 samples" in done.stdout


def test_training_names_a_broken_image_once_and_goes_on(run, tmp_path):
    """In every epoch another sample stands in for it; it is counted each time and named the first."""
    picture = io.BytesIO()
    Image.effect_noise((80, 80), 90).save(picture, "PNG")
    samples = (
        (f"{n:09d}", {"png": b"broken" if n == 7 else picture.getvalue(), "txt": f"figure {n}".encode()})
        for n in range(24)
    )
    folder = Folder(tmp_path / "set")
    write_manifest(folder, [write_shard(folder, "set-000000.tar", samples)], {})
    done = run(
        "train", "--train-data", "set", "--model", "tiny", "--batch-size", 8, "--epochs", 3, "--log-every", 1
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("image of sample 000000007 cannot be decoded") == 1
    entries = (tmp_path / "runs" / "tiny-set" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(entries[-1])["substituted_samples"] == 3
