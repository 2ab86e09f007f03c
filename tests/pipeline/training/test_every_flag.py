"""Every flag of `pipeline.train` does something that can be seen: an effect of each, and none is left out."""

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline import device
from pipeline.checks import flag_name
from pipeline.data import open_training_data, training_loader
from pipeline.open_data import open_data
from pipeline.text import TextStage
from pipeline.topology import Topology
from pipeline.train import build_trainer, train
from pipeline.training.config import TrainConfig
from pipeline.training.length import RunLength
from pipeline.training.resume import choose_global_batch
from pipeline.training.saved_config import read_flags
from pipeline.training.start import Start
from pipeline.training.starting_model import config_to_train
from pipeline.training.trainer import Trainer
from pmc_clip import create_model, get_tokenizer, load_model_config
from pmc_clip.export import save_folder
from shards import DataError, UsageError
from tests.figures import write_figures
from tests.training_cases import make_batch

SAMPLES, CPU = 40, torch.device("cpu")


def flags(**given: Any) -> TrainConfig:
    config = TrainConfig(**{"train_data": ("d",), "model": "tiny", **given})
    config.check()
    return config


def build(**given: Any) -> Trainer:
    """The trainer of a run with these flags, as the command builds it."""
    config = flags(**given)
    model = config_to_train(load_model_config(config.model), config.loss, mask_padding=config.mask_padding)
    length = config.plan(epoch=SAMPLES, global_batch=8, step_samples=8, start=0)
    return build_trainer(config, Start(None, length, 8), model, get_tokenizer(model), Topology(), CPU)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    """Data, weights, and a run with many flags, with what it said."""
    folder = tmp_path_factory.mktemp("world")
    data = write_figures(folder / "data", SAMPLES)
    save_folder(create_model("tiny"), folder / "weights", get_tokenizer("tiny"))
    config = flags(
        train_data=(data,),
        val_data=data,
        batch_size=8,
        steps=6,
        epochs=3,
        ema=0.5,
        val_weights="current",
        keep_best="text_to_image_recall_at_10",
        report_to="",
        save_every=2,
        save_frequency=3,
        keep_last=0,
        log_every=3,
        name="first",
        logs=str(folder / "runs"),
        debug=True,
        local_loss=True,
        gather_with_grad=True,
        hugging_face=True,
        dataset_type="csv",
    )
    return SimpleNamespace(
        folder=folder, data=data, config=config, run=folder / "runs" / "first", said=say_of(config)
    )


def say_of(config: TrainConfig) -> str:
    """What a run in this process says."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        train(config)
    return said.getvalue()


def entries(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def checkpoints(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob("*.pt")}


def settings_of(trainer: Trainer) -> dict[str, Any]:
    return trainer.optimizer.param_groups[1]


def loader_of(world: SimpleNamespace, **given: Any) -> Any:
    """The loader of a run on the world's data."""
    config = flags(train_data=(world.data,), **given)
    data = open_training_data(
        config.train_data, Topology(), lanes=config.lanes, seed=config.seed, tables=config
    )
    return training_loader(
        data,
        Topology(),
        global_batch=8,
        start=0,
        stop=16,
        images=config.train_images(16),
        text=TextStage(get_tokenizer("tiny"), seed=0, mask_ratio=config.mask_ratio if config.mlm else 0.0),
        options=config.loader_options(Topology()),
    )


def first_batch(world: SimpleNamespace, **given: Any) -> SimpleNamespace:
    """Copies of what the first batch holds."""
    with loader_of(world, **given) as loader:
        batch = next(iter(loader))
        labels = None if batch.labels is None else batch.labels.clone()
        columns = {name: list(values) for name, values in batch.columns.items()}
        return SimpleNamespace(
            images=batch.images.clone(), keys=list(batch.keys), labels=labels, columns=columns
        )


def table(world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, **given: Any) -> list[str]:
    """The captions of a table with unusual columns, as a run with these flags reads it."""
    folder = world.folder / "table"
    (folder / "elsewhere").mkdir(parents=True, exist_ok=True)
    sample = open_data(world.data, Topology()).read_sample(0)
    for name in ("a.jpg", "b.jpg"):
        (folder / "elsewhere" / name).write_bytes(sample.image)
    (folder / "t.csv").write_text("image;picture;caption;title\nb.jpg;a.jpg;one;two\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.folder / "cache"))
    config = flags(train_data=(str(folder / "t.csv"),), **given)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        read = open_data(config.train_data[0], Topology(), config).read_sample(0)
    return [json.loads(bytes(read.members["json"]))["image"], read.caption]


# One effect of each flag, as effect_NAME(world, monkeypatch).


def effect_model(world, monkeypatch):
    assert flags(model="tiny").run_folder("tiny", "d") != flags(model="small").run_folder("small", "d")
    assert build(model="tiny").model.config == load_model_config("tiny")


def effect_pretrained(world, monkeypatch):
    with contextlib.redirect_stderr(io.StringIO()):
        started = build(pretrained=str(world.folder / "weights"), seed=3).model
    assert not torch.equal(started.text_projection, build(seed=3).model.text_projection)


def effect_pretrained_image(world, monkeypatch):
    with pytest.raises(Exception, match="no pretrained image weights"):  # the tiny tower is not timm's
        build(pretrained_image=True)


def locked(**given: Any) -> set[str]:
    model = build(**given).model
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def effect_lock_image(world, monkeypatch):
    assert all(name.startswith("visual") for name in locked(lock_image=True))
    assert locked(lock_image=True)


def effect_lock_image_unlocked_groups(world, monkeypatch):
    left = locked(lock_image=True) - locked(lock_image=True, lock_image_unlocked_groups=2)
    assert {name.split(".")[1] for name in left} == {"layer4", "attnpool"}


def effect_lock_text(world, monkeypatch):
    assert {name.split(".")[0] for name in locked(lock_text=True)} == {"text_encoder"}


def effect_lock_text_unlocked_layers(world, monkeypatch):
    left = locked(lock_text=True) - locked(lock_text=True, lock_text_unlocked_layers=1)
    assert {name.split(".")[3] for name in left} == {"1"}


def effect_mask_padding(world, monkeypatch):
    plain = dataclasses.replace(load_model_config("tiny").text_cfg, mask_padding=False)
    config = dataclasses.replace(load_model_config("tiny"), text_cfg=plain)
    assert not config_to_train(config, "contrastive", mask_padding=False).text_cfg.mask_padding
    assert config_to_train(config, "contrastive", mask_padding=True).text_cfg.mask_padding


def effect_batch_size(world, monkeypatch):
    assert choose_global_batch(flags(batch_size=5), None, Topology(0, 2)) == 10


def effect_global_batch_size(world, monkeypatch):
    assert choose_global_batch(flags(global_batch_size=6), None, Topology(0, 2)) == 6


def length(**given: Any) -> RunLength:
    return flags(**given).plan(epoch=SAMPLES, global_batch=8, step_samples=8, start=0)


def effect_epochs(world, monkeypatch):
    assert length(epochs=3).stop == 3 * SAMPLES


def effect_samples(world, monkeypatch):
    assert length(samples="2k").stop == 2000


def effect_steps(world, monkeypatch):
    assert length(steps=7).stop == 56


def effect_images(world, monkeypatch):
    images = (str(world.folder / "table" / "elsewhere"),)
    assert table(world, monkeypatch, images=images, separator=";")[0] == "b.jpg"
    with pytest.raises((DataError, UsageError)):
        table(world, monkeypatch, separator=";")  # they are not beside the table


def effect_image_key(world, monkeypatch):
    images = (str(world.folder / "table" / "elsewhere"),)
    assert table(world, monkeypatch, images=images, separator=";", image_key="picture")[0] == "a.jpg"


def effect_caption_key(world, monkeypatch):
    images = (str(world.folder / "table" / "elsewhere"),)
    assert table(world, monkeypatch, images=images, separator=";", caption_key="title")[1] == "two"


def effect_separator(world, monkeypatch):
    with pytest.raises(UsageError):
        table(world, monkeypatch, images=(str(world.folder / "table" / "elsewhere"),))


def effect_crop_scale(world, monkeypatch):
    whole, parts = first_batch(world, crop_scale=1.0), first_batch(world, crop_scale=0.1)
    assert whole.keys == parts.keys
    assert not torch.equal(whole.images, parts.images)


def effect_decode(world, monkeypatch):
    assert not torch.equal(first_batch(world).images, first_batch(world, decode="exact").images)


def effect_workers(world, monkeypatch):
    with loader_of(world, workers=3) as loader:
        assert loader.workers == 3


def effect_prefetch_bytes(world, monkeypatch):
    assert flags(prefetch_bytes=7).loader_options(Topology()).prefetch_bytes == 7


def effect_cache_dir(world, monkeypatch):
    assert flags(cache_dir=str(world.folder / "blocks")).loader_options(Topology()).cache is not None


def effect_cache_size(world, monkeypatch):
    with pytest.raises(UsageError, match="--cache-size much"):
        flags(cache_size="much")


def broken(world: SimpleNamespace) -> str:
    return write_figures(world.folder / "broken", SAMPLES, broken=range(0, SAMPLES, 2))


def effect_on_bad_sample(world, monkeypatch):
    bad = SimpleNamespace(data=broken(world))
    with pytest.raises(DataError):
        first_batch(bad, on_bad_sample="fail", max_bad_samples="100%")


def effect_max_bad_samples(world, monkeypatch):
    bad = SimpleNamespace(data=broken(world))
    with pytest.raises(DataError), loader_of(bad, max_bad_samples="0%") as loader:
        list(loader)


def effect_columns(world, monkeypatch):
    assert set(first_batch(world, columns=("licence",)).columns) == {"licence"}


def effect_transform(world, monkeypatch):
    (world.folder / "mine.py").write_text("def black(example):\n    example.image[:] = 0\n")
    monkeypatch.syspath_prepend(str(world.folder))
    assert not first_batch(world, transform="mine:black").images.any()


def effect_loss(world, monkeypatch):
    assert "logit_bias" in build(loss="siglip").logit_parameters


def effect_mlm(world, monkeypatch):
    assert build(mlm=True).train_step(make_batch(0)).mlm is not None


def effect_mask_ratio(world, monkeypatch):
    few, many = (first_batch(world, mlm=True, mask_ratio=ratio).labels for ratio in (0.1, 1.0))
    assert (few > 0).sum() < (many > 0).sum()


def effect_loss_weights(world, monkeypatch):
    losses = build(mlm=True, loss_weights="0.2,0.4").train_step(make_batch(0))
    assert float(losses.total) == pytest.approx(0.2 * float(losses.match) + 0.4 * float(losses.mlm))


def effect_ignore_same_captions(world, monkeypatch):
    batch = make_batch(0, mlm=False, captions=["the same"] * 8)
    assert float(build(ignore_same_captions=True).train_step(batch).match) == pytest.approx(0, abs=1e-6)


def effect_lr(world, monkeypatch):
    assert build(lr=0.5, warmup=0).learning_rate == 0.5


def effect_warmup(world, monkeypatch):
    assert build(lr=1.0, warmup=4).learning_rate == 1 / 32


def effect_scheduler(world, monkeypatch):
    assert build(lr=1.0, warmup=0, scheduler="const")._schedule.at(10**9) == 1.0


def effect_restarts(world, monkeypatch):
    schedule = build(lr=1.0, warmup=0, epochs=2, scheduler="cosine-restarts", restarts=2)._schedule
    assert schedule.at(SAMPLES) == pytest.approx(0.1)


def effect_restart_decay(world, monkeypatch):
    given = {"epochs": 2, "scheduler": "cosine-restarts", "restarts": 2, "restart_decay": 0.5}
    assert build(lr=1.0, warmup=0, **given)._schedule.at(SAMPLES) == pytest.approx(0.5)


def effect_wd(world, monkeypatch):
    assert settings_of(build(wd=0.03))["weight_decay"] == 0.03


def effect_beta1(world, monkeypatch):
    assert settings_of(build(beta1=0.4))["betas"] == (0.4, 0.999)


def effect_beta2(world, monkeypatch):
    assert settings_of(build(beta2=0.4))["betas"] == (0.9, 0.4)


def effect_eps(world, monkeypatch):
    assert settings_of(build(eps=0.3))["eps"] == 0.3


def effect_grad_clip(world, monkeypatch):
    plain, clipped = build(eps=1e3, lr=1.0, warmup=0), build(eps=1e3, lr=1.0, warmup=0, grad_clip=1e-3)
    for trainer in (plain, clipped):
        trainer.train_step(make_batch(0, mlm=False))
    assert not torch.equal(plain.model.text_projection, clipped.model.text_projection)


def effect_ema(world, monkeypatch):
    assert build(ema=0.9).average is not None
    assert torch.load(world.run / "checkpoints" / "step-00000006.pt", weights_only=True)["average"]


def effect_precision(world, monkeypatch):
    losses = [
        float(build(precision=name).train_step(make_batch(0, mlm=False)).match) for name in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.05)


def effect_accum(world, monkeypatch):
    calls = []
    trainer = build(accum=4)
    trainer.model.register_forward_hook(lambda *_: calls.append(1))
    trainer.train_step(make_batch(0, mlm=False))
    assert len(calls) == 8  # each part twice


def effect_compile(world, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="--compile needs a C"):
        flags(compile=True)


def effect_grad_checkpointing(world, monkeypatch):
    wrapped = [name for name, _ in build(grad_checkpointing=True).model.named_modules() if "wrapped" in name]
    assert any(name.startswith("visual") for name in wrapped)
    assert any(name.startswith("text_encoder") for name in wrapped)


def effect_fsdp(world, monkeypatch):
    assert flags(fsdp=True).step_options(flags().objective(), CPU).fsdp  # what it does: test_sharded_model.py
    alone = dataclasses.replace(world.config, fsdp=True, steps=1, name="alone")
    assert "--fsdp: one process keeps the model whole" in say_of(alone)
    with pytest.raises(UsageError, match="--compile and --fsdp"):
        flags(fsdp=True, compile=True)


def effect_use_bn_sync(world, monkeypatch):
    model = create_model("tiny")
    flags(use_bn_sync=True).synchronise_batch_norms(model, Topology(0, 2), torch.device("cuda"))
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
    with pytest.raises(UsageError, match="on GPUs only"):
        flags(use_bn_sync=True).synchronise_batch_norms(model, Topology(0, 2), CPU)


def effect_max_nonfinite(world, monkeypatch):
    assert flags(max_nonfinite=7).step_options(flags().objective(), CPU).max_nonfinite == 7


def effect_val_data(world, monkeypatch):
    assert [entry["step"] for entry in entries(world.run, "valid")] == [5, 6]


def effect_val_frequency(world, monkeypatch):
    whole = length(epochs=4)
    due = [seen for seen in range(8, 161, 8) if flags(val_frequency=3).is_due(whole, seen)]
    assert due == [3 * SAMPLES, 4 * SAMPLES]


def effect_val_weights(world, monkeypatch):
    with pytest.raises(UsageError, match="no average of the weights without --ema"):
        flags(val_weights="average")
    other = dataclasses.replace(world.config, val_weights=None, name="averaged")
    say_of(other)
    averaged = world.run.with_name("averaged")
    assert entries(world.run, "valid") != entries(averaged, "valid")
    assert entries(world.run, "train")[-1]["loss"] == entries(averaged, "train")[-1]["loss"]


def effect_keep_best(world, monkeypatch):
    assert "best.pt" in checkpoints(world.run)


def effect_save_every(world, monkeypatch):
    assert {f"step-0000000{step}.pt" for step in (2, 4, 6)} <= checkpoints(world.run)


def effect_save_frequency(world, monkeypatch):
    assert flags(save_frequency=2).save_periods(SAMPLES, 8) == [2 * SAMPLES]
    assert flags(save_frequency=2, save_every=3).save_periods(SAMPLES, 8) == [24, 2 * SAMPLES]
    assert flags().save_periods(SAMPLES, 8) == [SAMPLES]


def effect_keep_last(world, monkeypatch):
    assert flags(keep_last=9).retention(SAMPLES).keep_last == 9


def effect_keep_every(world, monkeypatch):
    assert flags(keep_every=2).retention(SAMPLES).keep_every == 2 * SAMPLES


def effect_save_most_recent(world, monkeypatch):
    assert flags(save_most_recent=True).retention(SAMPLES).keep_last == 1


def effect_resume(world, monkeypatch):
    more = dataclasses.replace(world.config, resume="auto", name="longer")
    say_of(dataclasses.replace(more, resume=None, steps=2))
    assert "going on from" in say_of(dataclasses.replace(more, steps=3))
    assert entries(world.run.with_name("longer"), "train")[-1]["step"] == 3
    with pytest.raises(UsageError, match="holds a run already"):
        say_of(world.config)


def effect_resume_model_only(world, monkeypatch):
    path = str(world.run / "checkpoints" / "latest")
    model_only = {"resume": path, "resume_model_only": True, "ema": None, "val_weights": None}
    said = say_of(dataclasses.replace(world.config, **model_only, steps=1, name="again"))
    assert "starting from" in said
    assert entries(world.run.with_name("again"), "train")[0]["step"] == 1
    with pytest.raises(UsageError, match="give --resume PATH"):
        flags(resume_model_only=True, resume="auto")


def effect_timeout(world, monkeypatch):
    asked = {}
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: asked.update(timeout=timeout))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    two = Topology.from_environment(
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    )
    device.join_group(two, "gloo", flags(timeout=33.0).timeout)
    assert asked["timeout"] == timedelta(seconds=33)


def effect_log_every(world, monkeypatch):
    quiet = dataclasses.replace(world.config, debug=False, name="quiet", val_data=None, keep_best=None)
    say_of(quiet)
    assert [entry["step"] for entry in entries(world.run.with_name("quiet"), "train")] == [3, 6]


def effect_report_to(world, monkeypatch):
    assert not (world.run / "tensorboard").exists()
    with pytest.raises(UsageError, match="--report-to paper"):
        flags(report_to="paper")


def effect_profile(world, monkeypatch):
    traced = dataclasses.replace(
        world.config,
        profile=True,
        steps=9,
        name="traced",
        val_data=None,
        keep_best=None,
        report_to="tensorboard",
    )
    say_of(traced)
    trace = json.loads((world.run.with_name("traced") / "profile" / "trace.json").read_text())
    assert len(trace["traceEvents"]) > 100
    short = dataclasses.replace(traced, steps=1, name="short")
    assert "--profile: no trace, since there were fewer than 8 steps" in say_of(short)
    assert (world.run.with_name("traced") / "tensorboard").exists()


def effect_name(world, monkeypatch):
    assert world.run.is_dir()
    with pytest.raises(UsageError, match="--name a/b"):
        flags(name="a/b")


def effect_logs(world, monkeypatch):
    assert flags(logs="there", name="n").run_folder("tiny", "d") == Path("there/n")


def effect_debug(world, monkeypatch):
    assert [entry["step"] for entry in entries(world.run, "train")] == [1, 2, 3, 4, 5, 6]
    assert '"log_every_samples": 24' in world.said


def explained(world: SimpleNamespace, name: str) -> None:
    assert any(line.startswith(flag_name(name)) for line in world.said.splitlines())


def effect_local_loss(world, monkeypatch):
    explained(world, "local_loss")


def effect_gather_with_grad(world, monkeypatch):
    explained(world, "gather_with_grad")


def effect_hugging_face(world, monkeypatch):
    explained(world, "hugging_face")


def effect_dataset_type(world, monkeypatch):
    explained(world, "dataset_type")


def effect_train_data(world, monkeypatch):
    assert world.data in world.said


def effect_lanes(world, monkeypatch):
    assert first_batch(world, lanes=1).keys != first_batch(world, lanes=7).keys


def effect_seed(world, monkeypatch):
    assert first_batch(world, seed=1).keys != first_batch(world, seed=2).keys
    assert not torch.equal(build(seed=1).model.text_projection, build(seed=2).model.text_projection)


def effect_config(world, monkeypatch):
    assert read_flags(world.run / "config.json") == world.config


EFFECTS: dict[str, Callable[..., None]] = {
    name.removeprefix("effect_"): effect
    for name, effect in list(globals().items())
    if name.startswith("effect_")
}


def test_every_flag_has_an_effect_here():
    assert sorted(EFFECTS) == sorted(field.name for field in dataclasses.fields(TrainConfig))


@pytest.mark.parametrize("name", EFFECTS)
def test_the_flag_does_what_it_says(name, world, monkeypatch):
    EFFECTS[name](world, monkeypatch)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 1, "global_batch_size": 2}, "--batch-size and --global-batch-size"),
        ({"epochs": 1, "samples": "1k"}, "--epochs and --samples"),
        ({"restarts": 2}, "--scheduler cosine-restarts"),
        ({"lock_text_unlocked_layers": 1}, "--lock-text-unlocked-layers says what --lock-text leaves free"),
        ({"pretrained": "beta", "pretrained_image": True}, "leave out --pretrained-image"),
        ({"compile": True, "grad_checkpointing": True}, "--compile and --grad-checkpointing"),
        ({"save_most_recent": True, "keep_last": 5}, "--save-most-recent contradicts --keep-last"),
        ({"resume": "x", "resume_model_only": True, "pretrained": "beta"}, "both give the weights"),
        ({"keep_best": "image_to_text_recall_at_10"}, "give --val-data"),
        ({"images": ("figures",)}, "there is no table"),
        ({"loss_weights": "0.1,0.9"}, "give both flags or none"),
        ({"ema": 1.5}, "--ema 1.5: it must lie above 0 and below 1"),
        ({"grad_clip": 0.0}, "--grad-clip 0.0: it must be above 0"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        flags(**given)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_is_not_locked_at_random_weights(tower):
    config = flags(**{f"lock_{tower}": True})
    with pytest.raises(UsageError, match=f"--lock-{tower} would keep the {tower} tower at random weights"):
        config.check_locks(load_model_config("tiny"), config.first_weights)
    config.check_locks(load_model_config("tiny"), "beta")
