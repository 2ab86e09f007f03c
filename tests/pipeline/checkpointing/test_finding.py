"""Which checkpoint a run goes on from."""

import pytest

from pipeline.checkpoint import Checkpoint, DamagedCheckpoint
from pipeline.checkpointing.places import follow_latest
from pipeline.topology import Topology
from pipeline.training.resume import find_checkpoint
from pipeline.training.saving import SavingFlags
from shards import Folder, UsageError


@pytest.fixture
def folder(tmp_path, make_checkpoint) -> Folder:
    """Checkpoints of steps 1 to 3, of which the last is cut short."""
    folder = Folder(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        make_checkpoint(step).save(folder)
    folder.write("step-00000003.pt", folder.read("step-00000003.pt")[:-500])
    return folder


def find(folder: Folder, resume: str | None) -> str | None:
    return find_checkpoint(SavingFlags(resume=resume), folder, Topology())


def test_the_newest_whole_one_is_taken_and_what_is_passed_over_said(folder, capfd):
    assert find(folder, "auto") == folder.locate("step-00000002.pt")
    assert f"passed over: {folder.locate('step-00000003.pt')}: " in capfd.readouterr().err


def test_a_damaged_one_that_was_asked_for_is_refused(folder):
    address = find(folder, folder.locate("step-00000003.pt"))
    with pytest.raises(DamagedCheckpoint, match=r"step-00000003\.pt: .*--resume auto takes the one before"):
        Checkpoint.load(address)


def test_going_back_while_newer_ones_are_there_is_refused(folder):
    with pytest.raises(UsageError, match=r"holds step-00000003\.pt, .*another --name"):
        find(folder, folder.locate("step-00000001.pt"))
    assert find(Folder(f"{folder.address}-of-another-run"), folder.locate("step-00000001.pt"))


def test_the_newest_one_may_be_named_in_any_way(folder, monkeypatch):
    monkeypatch.chdir(folder.address)
    for name in ("latest", "step-00000003.pt", "../checkpoints/step-00000003.pt"):
        assert find(folder, name)


def test_a_fresh_run_in_a_used_folder_is_refused(folder, tmp_path):
    with pytest.raises(UsageError, match=r"holds a run already \(newest checkpoint step-00000003\.pt\)"):
        find(folder, None)
    assert find(Folder(tmp_path / "empty"), None) is None
    assert find(Folder(tmp_path / "empty"), "auto") is None


def test_latest_its_folder_and_the_file_itself_mean_the_same(folder):
    newest = folder.locate("step-00000003.pt")
    for name in (folder.address, folder.locate("latest"), newest):
        assert follow_latest(name) == newest


@pytest.mark.parametrize(("name", "message"), [("no.pt", "no such checkpoint"), (".", "is a folder; name a")])
def test_a_path_without_a_checkpoint_is_refused(tmp_path, name, message):
    with pytest.raises(UsageError, match=message):
        Checkpoint.load(str(tmp_path / name))
