"""Checkpoints in parts: written by some processes, read by any other number of them, to the bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import xxhash

from pipeline.checkpoint import Checkpoint, DamagedCheckpoint, DataState
from pipeline.checkpointing import saver as saver_module
from pipeline.checkpointing.forms import InParts, OneFile
from pipeline.checkpointing.newest import newest_whole
from pipeline.checkpointing.places import follow_latest, names_newest_first
from pipeline.checkpointing.retention import Retention
from pipeline.checkpointing.saver import CheckpointSaver
from pipeline.open_model import open_model
from pipeline.topology import Topology
from pipeline.training.optimizer import OptimizerOptions
from pipeline.training.starting_model import begin_with_pretrained
from pipeline.training.trainer import Trainer
from pmc_clip import create_model, get_tokenizer
from shards import DataError, Folder, UsageError
from shards.storage import LocalFile
from tests.training_cases import BATCH, make_batch, make_trainer, run_together, share_of


def make(topology: Topology, *, fsdp: bool = True, device: str = "cpu") -> Trainer:
    return make_trainer(device, optimizer=OptimizerOptions(ema=0.9), topology=topology, fsdp=fsdp)


def checkpoint_of(trainer: Trainer) -> Checkpoint:
    state = trainer.state()
    return Checkpoint(
        **state,
        data=DataState("d", "0", 0, 1),
        model=trainer.model.config.to_dict(),
        tokenizer=get_tokenizer("tiny").fingerprint(),
        config={"mlm": True},
    )


def saver_of(trainer: Trainer, folder: Path, topology: Topology, **retention: int) -> CheckpointSaver:
    form = InParts(trainer.spread) if trainer.spread else OneFile()
    return CheckpointSaver(
        Folder(folder), Retention(**retention), step=trainer.step, form=form, is_main=topology.is_main
    )


def train_and_save(topology: Topology, folder: Path) -> None:
    """Two steps, and a checkpoint after each."""
    trainer = make(topology)
    with saver_of(trainer, folder / "saved", topology) as saver:
        for seed in range(2):
            trainer.train_step(share_of(make_batch(seed), topology))
            saver.save(checkpoint_of(trainer))


def go_on_and_save(topology: Topology, folder: Path, *addresses: str) -> None:
    """Load each checkpoint and save what was loaded."""
    for number, address in enumerate(addresses):
        trainer = make(topology)
        trainer.load(Checkpoint.load(address, outline=True))
        with saver_of(trainer, folder / f"again-{number}", topology) as saver:
            saver.saved_step = 0
            saver.save(checkpoint_of(trainer))


def all_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    found = checkpoint.tensors()
    assert {name.partition("/")[0] for name in found} == {"state_dict", "average", "optimizer"}
    return found


def assert_same(ours: Checkpoint, theirs: Checkpoint) -> None:
    mine, other = all_of(ours), all_of(theirs)
    assert mine.keys() == other.keys()
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []
    assert (ours.step, ours.samples_seen, ours.data) == (theirs.step, theirs.samples_seen, theirs.data)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """What two processes saved: checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("parts")
    run_together(2, train_and_save, folder)
    return folder / "saved"


def test_they_go_on_from_two_processes_to_one_and_three_to_the_bit(saved, tmp_path):
    newest = Checkpoint.load(str(saved))
    alone = make(Topology(), fsdp=False)
    alone.load(newest)
    own = checkpoint_of(alone)
    assert_same(own, newest)
    file = own.save(Folder(tmp_path / "file"))
    run_together(3, go_on_and_save, tmp_path, str(saved / "step-00000002"), file)
    for number in range(2):
        assert_same(Checkpoint.load(str(tmp_path / f"again-{number}")), newest)
    parts = {path.name for path in (tmp_path / "again-0" / "step-00000002").iterdir()}
    assert parts == {"checkpoint.json", "part-00000.bin", "part-00001.bin", "part-00002.bin"}


def test_each_process_writes_half(saved):
    sizes = [(saved / "step-00000002" / f"part-0000{rank}.bin").stat().st_size for rank in range(2)]
    assert sizes[1] == pytest.approx(sum(sizes) / 2, rel=0.02)


def test_the_weights_alone_can_be_read(saved):
    whole = Checkpoint.load(str(saved))
    outline = Checkpoint.load(str(saved), outline=True)
    assert all(tensor.is_meta for tensor in outline.tensors().values())
    for average in (False, True):
        found, expected = outline.weights(average=average), whole.weights(average=average)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["", "latest", "step-00000002", "step-00000002/"])
def test_every_command_reads_them_by_any_name(saved, name):
    expected = Checkpoint.load(str(saved))
    opened = open_model(f"{saved}/{name}", average=True)
    assert (opened.name, opened.progress) == ("step-00000002-average", {"step": 2, "samples_seen": 2 * BATCH})
    model = create_model("tiny")
    begin_with_pretrained(model, f"{saved}/{name}")
    for found, weights in ((opened.model, expected.average), (model, expected.state_dict)):
        ours = found.state_dict()
        assert [key for key in weights if not torch.equal(ours[key], weights[key])] == []


def test_a_run_that_trained_other_parameters_is_refused(saved):
    trainer = make_trainer(lock="visual")
    with pytest.raises(UsageError, match="give the --lock-image and --lock-text"):
        trainer.load(Checkpoint.load(str(saved), outline=True))


@pytest.fixture
def copied(saved, tmp_path) -> Folder:
    shutil.copytree(saved, tmp_path / "checkpoints")
    return Folder(tmp_path / "checkpoints")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "flipped": ("part-00001.bin", flip),
    "cut": ("part-00000.bin", cut),
    "missing": ("part-00001.bin", Path.unlink),
    "misdescribed": ("checkpoint.json", flip),
    "undescribed": ("checkpoint.json", cut),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over_and_named(copied, damage):
    name, spoil = DAMAGES[damage]
    spoil(Path(copied.address) / "step-00000002" / name)
    found = newest_whole(copied)
    assert found.address == copied.locate("step-00000001")
    (reason,) = found.damaged
    assert reason.startswith(f"{copied.locate('step-00000002')}: ")
    with pytest.raises(DamagedCheckpoint, match=r"step-00000002: .*--resume auto takes the one before"):
        Checkpoint.load(copied.address)


def test_one_of_another_version_is_refused_and_not_taken_for_damaged(copied):
    path = Path(copied.locate("step-00000002/checkpoint.json"))
    rest = path.read_bytes().partition(b"\n")[2].replace(b'"format_version": 1', b'"format_version": 9', 1)
    path.write_bytes(b'{"checksum": "xxh3_128:%s",\n' % xxhash.xxh3_128_hexdigest(rest).encode() + rest)
    found = newest_whole(copied)
    assert found.address == copied.locate("step-00000002")
    with pytest.raises(UsageError, match=r"step-00000002: not a checkpoint of pipeline\.train"):
        Checkpoint.load(found.address)


def test_without_its_description_it_is_none_and_is_cleared_away(copied):
    Path(copied.locate("step-00000002/checkpoint.json")).unlink()
    Path(copied.locate("step-00000001/notes.txt")).write_text("mine")
    assert names_newest_first(copied) == ["step-00000001"]
    with pytest.raises(UsageError, match=r"step-00000002 is no whole checkpoint: it has no checkpoint\.json"):
        Checkpoint.load(copied.locate("step-00000002"))
    with CheckpointSaver(copied, Retention()):
        pass
    assert copied.folders() == ["step-00000001"]


def test_what_is_not_the_runs_own_stays_in_a_folder_that_is_deleted(copied):
    """A run that goes on in one file, and keeps one."""
    Path(copied.locate("step-00000001/notes.txt")).write_text("mine")
    trainer = make(Topology(), fsdp=False)
    trainer.load(Checkpoint.load(copied.address))
    trainer.train_step(make_batch(3))
    with CheckpointSaver(copied, Retention(keep_last=1), step=2) as saver:
        saver.save(checkpoint_of(trainer))
    assert names_newest_first(copied) == ["step-00000003.pt"]
    assert follow_latest(copied.address) == copied.locate("step-00000003.pt")
    assert [path.name for path in Path(copied.locate("step-00000001")).iterdir()] == ["notes.txt"]
    assert not Path(copied.locate("step-00000002")).exists()


def save_with_trouble(topology: Topology, folder: Path) -> None:
    """Steps 1 to 4; the best is step 1's, and at step 2 the second process's disk is full."""
    told: dict[str, Any] = {"lost": [], "said": []}
    finish = LocalFile.finish
    saver_module.say = lambda text, *, main=True: told["said"].append(text) if main else None

    def refuse(file: LocalFile) -> None:
        raise OSError(28, "No space left on device")

    trainer = make(topology)
    with saver_of(trainer, folder / "trouble", topology, keep_last=1) as saver:
        for step in range(1, 5):
            trainer.train_step(share_of(make_batch(step), topology))
            if step == 2 and topology.rank == 1:
                LocalFile.finish = refuse  # type: ignore[method-assign]
            saver.save(checkpoint_of(trainer))
            if step == 1:
                saver.keep_best("recall", 0.5)
            try:
                saver.finish()
            except DataError as error:
                told["lost"].append([step, str(error)])
            if topology.is_main:
                told[step] = names_newest_first(Folder(folder / "trouble"))
            LocalFile.finish = finish  # type: ignore[method-assign]
            dist.barrier()
    (folder / f"told-{topology.rank}.json").write_text(json.dumps(told))


def test_a_full_disk_of_one_process_costs_one_checkpoint_and_the_best_stays(tmp_path):
    run_together(2, save_with_trouble, tmp_path)
    main, other = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2))
    for told in (main, other):
        ((step, reason),) = told["lost"]
        assert step == 2
        assert "step 2 could not be written" in reason
        assert "No space left" in reason
    assert [text.partition(": ")[0] for text in main["said"]].count("warning") == 1
    assert other["said"] == []
    assert main["2"] == ["step-00000001"]
    assert main["4"] == ["step-00000004", "step-00000001"]
    folder = tmp_path / "trouble"
    assert (folder / "best").read_text() == "step-00000001\n"
    assert Checkpoint.load(str(folder / "best")).step == 1
    assert Folder(folder).folders() == ["step-00000001", "step-00000004"]
    (folder / "best").write_text("step-00000004\n")  # as a kill may leave it: the ledger knows better
    with CheckpointSaver(Folder(folder), Retention(), step=4):
        pass
    assert (folder / "best").read_text() == "step-00000001\n"


def go_on_on_gpus(topology: Topology, folder: Path) -> None:
    """A step, a checkpoint, and another step from there: of the trainer that saved and of one that loaded."""
    torch.use_deterministic_algorithms(False)
    device = f"cuda:{topology.rank}"
    torch.cuda.set_device(device)
    saving, loading = (make(topology, device=device) for _ in range(2))
    saving.train_step(share_of(make_batch(1), topology))
    with saver_of(saving, folder / "saved", topology) as saver:
        saver.save(checkpoint_of(saving))
        saving.train_step(share_of(make_batch(2), topology))
    dist.barrier()
    loading.load(Checkpoint.load(str(folder / "saved"), outline=True))
    loading.train_step(share_of(make_batch(2), topology))
    ours, theirs = (all_of(checkpoint_of(trainer)) for trainer in (loading, saving))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_gpus_a_run_goes_on_from_its_parts(tmp_path):
    run_together(2, go_on_on_gpus, tmp_path, backend="nccl")
    assert Checkpoint.load(str(tmp_path / "saved")).step == 1
