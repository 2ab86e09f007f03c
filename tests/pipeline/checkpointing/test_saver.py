"""Checkpoints of a running job: whole, in the background, and only as many as wanted."""

import json
import os
import threading

import pytest
import torch

from pipeline.checkpoint import Checkpoint, DamagedCheckpoint
from pipeline.checkpointing.newest import newest_whole
from pipeline.checkpointing.places import follow_latest, names_newest_first
from pipeline.checkpointing.retention import Retention
from pipeline.checkpointing.saver import CheckpointSaver
from shards import DataError, Folder
from shards.storage import LocalFile


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "checkpoints")


def save_all(folder: Folder, checkpoints, retention: Retention, step: int = 0) -> None:
    with CheckpointSaver(folder, retention, step=step, samples_seen=step * 10) as saver:
        for checkpoint in checkpoints:
            saver.save(checkpoint)
        saver.finish()


def steps_in(folder: Folder) -> list[int]:
    return sorted(int(name[5:-3]) for name in names_newest_first(folder))


def test_what_is_saved_is_the_state_of_its_moment(folder, make_checkpoint):
    """The training thread goes on changing the tensors while they are written."""
    checkpoint = make_checkpoint(1, 2_000_000)
    with CheckpointSaver(folder, Retention()) as saver:
        for step in (1, 2):
            saver.save(make_checkpoint(step, 2_000_000) if step == 2 else checkpoint)
            checkpoint.state_dict["weight"].fill_(-1)
            checkpoint.optimizer["state"][0]["exp_avg"].fill_(-1)
    for step in (1, 2):
        found = Checkpoint.load(folder.locate(f"step-{step:08d}.pt"))
        assert found.state_dict["weight"].unique().tolist() == [step]
        assert found.optimizer["state"][0]["exp_avg"].unique().tolist() == [step + 0.5]
    assert follow_latest(folder.locate("latest")) == folder.locate("step-00000002.pt")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_is_saved_of_a_gpu_is_the_state_of_its_moment(folder, make_checkpoint):
    checkpoint = make_checkpoint(1)
    checkpoint.state_dict["weight"] = torch.full((50_000_000,), 1.0, device="cuda")
    with CheckpointSaver(folder, Retention()) as saver:
        saver.save(checkpoint)
        checkpoint.state_dict["weight"].fill_(-1)
    assert Checkpoint.load(folder.locate("latest")).state_dict["weight"].unique().tolist() == [1]


def test_saving_returns_before_the_file_is_written(folder, make_checkpoint, monkeypatch):
    go_on = threading.Event()
    finish = LocalFile.finish
    monkeypatch.setattr(LocalFile, "finish", lambda file: (go_on.wait(60), finish(file)))
    with CheckpointSaver(folder, Retention()) as saver:
        saver.save(make_checkpoint(1))
        assert names_newest_first(folder) == []
        go_on.set()
    assert steps_in(folder) == [1]


def test_tensors_that_share_memory_and_memory_formats_come_back_as_they_were(folder, make_checkpoint):
    checkpoint = make_checkpoint(1)
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    checkpoint.state_dict.update(image=image, again=image, empty=torch.empty(0))
    save_all(folder, [checkpoint], Retention())
    found = Checkpoint.load(folder.locate("latest")).state_dict
    assert torch.equal(found["image"], image)
    assert found["image"].stride() == image.stride()
    assert found["again"].data_ptr() == found["image"].data_ptr()


def test_the_newest_and_one_every_so_often_stay(folder, make_checkpoint):
    save_all(folder, map(make_checkpoint, range(1, 12)), Retention(keep_last=2, keep_every=40))
    assert steps_in(folder) == [4, 8, 10, 11]


def test_after_a_restart_the_same_stay_as_without_one(folder, make_checkpoint):
    retention = Retention(keep_last=2, keep_every=40)
    save_all(folder, map(make_checkpoint, range(1, 7)), retention)
    save_all(folder, map(make_checkpoint, range(7, 12)), retention, step=6)
    assert steps_in(folder) == [4, 8, 10, 11]


def test_with_no_limit_all_stay(folder, make_checkpoint):
    save_all(folder, map(make_checkpoint, range(1, 8)), Retention(keep_last=0))
    assert steps_in(folder) == list(range(1, 8))


def test_what_the_run_did_not_write_stays(folder, make_checkpoint):
    make_checkpoint(1).save(folder)
    folder.write("notes.txt", b"mine")
    save_all(folder, map(make_checkpoint, range(2, 5)), Retention(keep_last=1))
    assert steps_in(folder) == [1, 4]
    assert folder.read("notes.txt") == b"mine"


def test_an_unreadable_ledger_costs_no_checkpoint(folder, make_checkpoint):
    save_all(folder, [make_checkpoint(1)], Retention(keep_last=1))
    folder.write("saved.json", b'{"checkpoints": [{')
    save_all(folder, [make_checkpoint(2)], Retention(keep_last=1), step=1)
    assert steps_in(folder) == [1, 2]


def test_the_best_outlives_its_step_file(folder, make_checkpoint):
    with CheckpointSaver(folder, Retention(keep_last=1)) as saver:
        for step, value in ((1, 0.2), (2, 0.7), (3, 0.5), (4, float("nan"))):
            saver.save(make_checkpoint(step))
            if saver.beats_best("recall", value, higher_is_better=True):
                saver.keep_best("recall", value)
    assert steps_in(folder) == [4]
    assert Checkpoint.load(folder.locate("best.pt")).step == 2
    assert json.loads(folder.read("saved.json"))["best"] == {"metric": "recall", "value": 0.7, "step": 2}
    with CheckpointSaver(folder, Retention(), step=4) as saver:
        assert not saver.beats_best("recall", 0.6, higher_is_better=True)
        assert saver.beats_best("loss", 0.6, higher_is_better=False)


def test_what_killed_processes_left_is_removed_and_nothing_else(folder, make_checkpoint):
    left = [f".step-00000005.pt.{'a' * 32}.tmp", f".latest.{'b' * 32}.tmp"]
    for name in [*left, ".mine.tmp"]:
        folder.write(name, b"half")
    save_all(folder, [make_checkpoint(1)], Retention())
    assert not set(left) & set(folder.names())
    assert ".mine.tmp" in folder.names()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_checkpoint_is_passed_over_and_named(folder, make_checkpoint, damage):
    save_all(folder, map(make_checkpoint, (1, 2, 3)), Retention())
    for step in (2, 3):
        damage_file(folder, f"step-{step:08d}.pt", damage)
    found = newest_whole(folder)
    assert found.address == folder.locate("step-00000001.pt")
    assert [reason.partition(": ")[0] for reason in found.damaged] == [
        folder.locate(f"step-0000000{step}.pt") for step in (3, 2)
    ]
    with pytest.raises(DamagedCheckpoint, match=r"step-00000003\.pt: "):
        Checkpoint.load(folder.locate("step-00000003.pt"))
    damage_file(folder, "step-00000001.pt", damage)
    with pytest.raises(DataError, match=r"no checkpoint is whole.*delete them to begin afresh"):
        newest_whole(folder)


def damage_file(folder: Folder, name: str, how: str) -> None:
    data = bytearray(folder.read(name))
    data[len(data) // 2] ^= 4
    folder.write(name, {"flip": bytes(data), "cut": bytes(data[: len(data) // 2]), "empty": b""}[how])


@pytest.fixture
def refuse(monkeypatch):
    """`refuse(True)`: no file can be finished, as on a full disk."""
    finish, state = LocalFile.finish, {"refuses": False}

    def write(file: LocalFile) -> None:
        if state["refuses"]:
            raise OSError(28, os.strerror(28))
        finish(file)

    monkeypatch.setattr(LocalFile, "finish", write)
    return lambda refuses: state.update(refuses=refuses)


def test_a_refused_checkpoint_is_told_and_the_next_one_makes_good(folder, make_checkpoint, refuse, capfd):
    with CheckpointSaver(folder, Retention(keep_last=1)) as saver:
        saver.save(make_checkpoint(1))
        saver.finish()
        refuse(True)
        saver.save(make_checkpoint(2))
        with pytest.raises(DataError, match=r"step 2 could not be written: .*No space left.*make room"):
            saver.finish()
        assert "warning: the checkpoint of step 2 could not be written" in capfd.readouterr().err
        assert newest_whole(folder).address == folder.locate("step-00000001.pt")
        assert [name for name in os.listdir(folder.address) if name.endswith(".tmp")] == []
        refuse(False)
        saver.save(make_checkpoint(3))
        saver.finish()
    assert steps_in(folder) == [3]
