"""Weights by name: every layout and every place gives the published features, and whatever stands in the way
is one message that names it.
"""

import io
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import pmc_clip
from pmc_clip.export import save_folder
from pmc_clip.pretrained import (
    Pretrained,
    check_config,
    list_pretrained,
    load_pretrained,
    read_pretrained,
)
from tests.hub_server import HubServer

SPLIT_FILES = ["image_encoder(resnet50).pth", "text_encoder.pth", "text_projection_layer.pth"]


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    """The hub's cache and ours, in the test's own folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))  # as HF_HOME sets it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def point_to(monkeypatch):
    """`point_to("http://…")`: as HF_ENDPOINT does, before the process starts."""

    def set_endpoint(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        # Before version 1, another module has its own.
        monkeypatch.setattr(
            "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False
        )

    return set_endpoint


@pytest.fixture
def hub(point_to, golden):
    """The hub, with the golden checkpoint in the place of the published one."""
    files = {"checkpoint.pt": (golden / "checkpoint.pt").read_bytes(), "README.md": b"# PMC-OA\n"}
    with HubServer("axiong/pmc_oa_beta", files) as server:
        point_to(server.endpoint)
        yield server


@pytest.fixture
def model_hub(point_to):
    """The hub, with an empty repository of models."""
    with HubServer("someone/model", {}, kind="models") as server:
        point_to(server.endpoint)
        yield server


@pytest.fixture
def golden_file(golden) -> Path:
    return golden / "checkpoint.pt"


@pytest.fixture
def assert_golden(golden_config, golden_model, expected):
    """That loaded weights give the golden features: the text's as published, the image's as that file's."""

    def check(pretrained: Pretrained) -> None:
        assert pretrained.mlm
        model = pmc_clip.PMCCLIP(pretrained.config or golden_config, pretrained_text=False).eval()
        load_pretrained(model, pretrained)
        with torch.no_grad():
            text = model.encode_text(expected["input_ids"], normalize=True)
            image = model.encode_image(expected["images"])
            known = golden_model.encode_image(expected["images"])
        torch.testing.assert_close(text, expected["text_features"], rtol=0, atol=1e-5)
        torch.testing.assert_close(image, known, rtol=0, atol=0)

    return check


def packed(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def cached_files(tmp_path: Path) -> set[str]:
    """Names of the files that downloads from other places than the hub left."""
    return {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}


# Layouts


def test_published_checkpoint_gives_the_published_features(golden_file, assert_golden):
    pretrained = read_pretrained(golden_file)
    assert (pretrained.layout, pretrained.config, pretrained.source) == ("published", None, str(golden_file))
    assert_golden(pretrained)


def test_file_address_is_a_path_and_nothing_is_copied(golden_file, tmp_path):
    assert read_pretrained(f"file://{golden_file}").mlm
    assert cached_files(tmp_path) == set()


def test_tensors_alone_are_a_checkpoint_too(golden_state, assert_golden, tmp_path):
    plain = {name.removeprefix("module."): tensor.contiguous() for name, tensor in golden_state.items()}
    torch.save(plain, tmp_path / "plain.pt")
    save_file(plain, tmp_path / "plain.safetensors")
    for name in ("plain.pt", "plain.safetensors"):
        assert_golden(read_pretrained(tmp_path / name))


def test_published_optimiser_state_with_numpy_numbers_is_no_obstacle(golden_file, assert_golden, tmp_path):
    numpy = pytest.importorskip("numpy")
    content = pmc_clip.load_checkpoint_file(golden_file)
    # The published schedule is computed by numpy and ends up in the optimiser's groups.
    content["optimizer"] = {
        "state": {},
        "param_groups": [{"lr": 0.5 * (1 + numpy.cos(numpy.pi * 0.3)) * 1e-4}],
    }
    torch.save(content, tmp_path / "epoch_1.pt")
    assert_golden(read_pretrained(tmp_path / "epoch_1.pt"))


def test_own_checkpoint_says_its_config(golden_config, golden_model, assert_golden, tmp_path):
    content = {
        "format_version": 1,
        "state_dict": golden_model.state_dict(),
        "model": golden_config.to_dict(),
        "step": 3,
        "optimizer": {"state": {}},
    }
    torch.save(content, tmp_path / "step-00000003.pt")
    (tmp_path / "latest").write_text("step-00000003.pt\n")
    for name in ("step-00000003.pt", "latest", "."):
        pretrained = read_pretrained(tmp_path / name)
        assert (pretrained.layout, pretrained.config) == ("own", golden_config)
        assert_golden(pretrained)


def test_exported_folder_loads_again(golden_model, assert_golden, tmp_path):
    save_folder(golden_model, tmp_path / "exported")
    pretrained = read_pretrained(tmp_path / "exported")
    assert pretrained.layout == "folder"
    assert pretrained.config is not None
    assert_golden(pretrained)


def test_folder_with_a_published_checkpoint_is_enough(golden_file, assert_golden, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(golden_file.read_bytes())
    assert_golden(read_pretrained(tmp_path))


def test_folder_without_weights_says_what_it_lacks(tmp_path):
    with pytest.raises(
        pmc_clip.ModelError, match=r"has no config\.json with model\.safetensors, no image_enc"
    ):
        read_pretrained(tmp_path)


def test_latest_that_names_a_lost_checkpoint_is_said(tmp_path):
    (tmp_path / "latest").write_text("step-00000007.pt\n")
    with pytest.raises(pmc_clip.ModelError, match=r"has no step-00000007\.pt: check the path"):
        read_pretrained(tmp_path / "latest")


def test_latest_that_names_a_checkpoint_in_parts_says_what_to_do(tmp_path):
    (tmp_path / "latest").write_text("step-00000007\n")
    with pytest.raises(pmc_clip.ModelError, match=r"step-00000007, .* --fsdp: .*pipeline\.export"):
        read_pretrained(tmp_path / "latest")


@pytest.mark.parametrize("content", ["", "../other/step-00000001.pt", "latest", "two words.pt"])
def test_latest_that_leads_elsewhere_is_refused(content, tmp_path):
    (tmp_path / "latest").write_text(content)
    with pytest.raises(pmc_clip.ModelError, match=r"latest: names no checkpoint beside it"):
        read_pretrained(tmp_path / "latest")


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, {"state_dict": {"weights": "none"}}, {"state_dict": 1}]
)
def test_file_without_tensors_is_no_checkpoint(content, tmp_path):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(pmc_clip.ModelError, match=r"odd\.pt: (holds no tensors|expected a state_dict)"):
        read_pretrained(tmp_path / "odd.pt")


@pytest.mark.parametrize("name", ["nowhere/checkpoint.pt", "gamma", "PMC_CLIP:gamma"])
def test_unknown_name_is_told_the_tags(name):
    with pytest.raises(pmc_clip.ModelError, match=f"^{name}: neither a file .* the tags beta, RC, split"):
        read_pretrained(name)


def test_no_name_at_all_is_told_the_tags():
    with pytest.raises(pmc_clip.ModelError, match=r"no weights are named: give a tag \(beta, RC, split\)"):
        read_pretrained("")


# The split


@pytest.fixture
def split_config() -> pmc_clip.ModelConfig:
    """RN50_split's recipe on the tiny model."""
    told = pmc_clip.load_model_config("tiny").to_dict()
    told["init_logit_scale"] = 4.4292
    told["vision_cfg"]["head_width"] = 32
    told["text_cfg"] |= {"pool": "pooler", "mask_padding": True, "vocab_size": 60}
    return pmc_clip.ModelConfig.from_dict(told)


@pytest.fixture
def bert(split_config):
    """transformers' own model of the split text tower's shape."""
    from transformers import BertConfig, BertModel

    text = split_config.text_cfg
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        num_hidden_layers=text.layers,
        num_attention_heads=text.bert.num_attention_heads,
        intermediate_size=text.bert.intermediate_size,
        max_position_embeddings=text.bert.max_position_embeddings,
    )
    return BertModel(shape).eval()


@pytest.fixture
def projection(split_config) -> torch.Tensor:
    return torch.randn(split_config.text_cfg.width, split_config.embed_dim, generator=torch.manual_seed(1))


@pytest.fixture
def split_folder(split_config, bert, projection, tmp_path) -> Path:
    """The three files, and the config of their unusual shape."""
    visual = pmc_clip.PMCCLIP(split_config, mlm=False, pretrained_text=False).visual.state_dict()
    positions = torch.arange(split_config.text_cfg.bert.max_position_embeddings)[None]
    text = {**bert.state_dict(), "embeddings.position_ids": positions}
    for name, content in zip(SPLIT_FILES, (visual, text, projection), strict=True):
        torch.save(content, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(split_config.to_dict()))
    return tmp_path


def test_split_gives_the_pooler_output_under_an_attention_mask(split_folder, split_config, bert, projection):
    pretrained = read_pretrained(split_folder)
    assert (pretrained.layout, pretrained.mlm, pretrained.config) == ("split", False, split_config)
    model = pmc_clip.PMCCLIP(split_config, mlm=False, pretrained_text=False).eval()
    load_pretrained(model, pretrained)
    tokens = torch.tensor([[2, 17, 33, 5, 3, 0, 0], [2, 9, 3, 0, 0, 0, 0], [2, 40, 41, 42, 43, 44, 3]])
    with torch.no_grad():
        found = model.encode_text(tokens)
        pooled = bert(input_ids=tokens, attention_mask=(tokens != 0).long()).pooler_output
    torch.testing.assert_close(found, pooled @ projection, rtol=0, atol=1e-5)
    assert model.logit_scale.item() == pytest.approx(4.4292)
    assert model.visual.attnpool.heads == 8
    saved = torch.load(split_folder / SPLIT_FILES[0], weights_only=True)
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.visual.state_dict().items())


def test_split_files_may_have_prefixes_and_a_parameter(split_folder):
    plain = read_pretrained(split_folder).state_dict
    for name, prefix in zip(SPLIT_FILES[:2], ("module.visual.", "text_encoder."), strict=True):
        state = torch.load(split_folder / name, weights_only=True)
        torch.save({prefix + key: tensor for key, tensor in state.items()}, split_folder / name)
    matrix = torch.load(split_folder / SPLIT_FILES[2], weights_only=True)
    for content in (torch.nn.Parameter(matrix), {"text_projection": matrix}):
        torch.save(content, split_folder / SPLIT_FILES[2])
        found = read_pretrained(split_folder).state_dict
        assert found.keys() == plain.keys()
        assert all(torch.equal(found[name], plain[name]) for name in plain)
        assert not found["text_projection"].requires_grad


def test_split_of_the_published_shape_is_named_by_its_own_model(split_folder):
    (split_folder / "config.json").unlink()
    pretrained = read_pretrained(split_folder)
    assert pretrained.config == pmc_clip.load_model_config("RN50_split")
    with pytest.raises(pmc_clip.ModelError, match="trained as another model") as told:
        check_config(pmc_clip.load_model_config("RN50_fusion4"), pretrained)
    for difference in (
        "vision_cfg.head_width is 64 in the model and 256 in the checkpoint",
        "text_cfg.pool is 'cls' in the model and 'pooler' in the checkpoint",
        "text_cfg.mask_padding is False in the model and True in the checkpoint",
        "Build the model that it was trained as, RN50_split",
    ):
        assert difference in str(told.value)


def test_lost_part_of_the_split_is_named(split_folder):
    (split_folder / "text_encoder.pth").unlink()
    with pytest.raises(pmc_clip.ModelError, match=r"has no text_encoder\.pth"):
        read_pretrained(split_folder)


def test_projection_of_another_kind_is_refused(split_folder):
    for content, told in (({"weight": torch.zeros(2, 2)}, "holds weight"), (3.5, "holds a float")):
        torch.save(content, split_folder / SPLIT_FILES[2])
        with pytest.raises(pmc_clip.ModelError, match=rf"text_projection_layer\.pth: {told}"):
            read_pretrained(split_folder)


# What does not fit


def test_weights_without_the_fusion_transformer_want_mlm_false(split_folder, split_config):
    model = pmc_clip.PMCCLIP(split_config, pretrained_text=False)
    with pytest.raises(pmc_clip.ModelError, match=r"no mlm_projection.*: build the model with mlm=False"):
        load_pretrained(model, read_pretrained(split_folder))


def test_every_layout_names_tensors_that_do_not_fit(split_folder, split_config, golden_file):
    other = replace(split_config, text_cfg=replace(split_config.text_cfg, vocab_size=61))
    pretrained = replace(read_pretrained(split_folder), config=None)
    state = {**pretrained.state_dict, "visual.extra": torch.zeros(1)}
    del state["text_encoder.pooler.dense.bias"]
    model = pmc_clip.PMCCLIP(other, mlm=False, pretrained_text=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(pmc_clip.ModelError, match="does not fit the model") as told:
        load_pretrained(model, replace(pretrained, state_dict=state))
    for difference in (
        "missing: text_encoder.pooler.dense.bias",
        "unexpected: visual.extra",
        "text_encoder.embeddings.word_embeddings.weight ([60, 128], the model has [61, 128])",
    ):
        assert difference in str(told.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_published_weights_do_not_pass_for_a_pooled_model(golden_config, golden_file):
    pooled = replace(golden_config, text_cfg=replace(golden_config.text_cfg, pool="pooler"))
    with pytest.raises(pmc_clip.ModelError, match=r"missing: text_encoder\.pooler\.dense"):
        load_pretrained(pmc_clip.PMCCLIP(pooled, pretrained_text=False), read_pretrained(golden_file))


def test_other_heads_are_seen_though_all_shapes_agree(golden_config, golden_model, tmp_path):
    save_folder(golden_model, tmp_path / "exported")
    pretrained = read_pretrained(tmp_path / "exported")
    other = replace(golden_config, vision_cfg=replace(golden_config.vision_cfg, head_width=32))
    with pytest.raises(pmc_clip.ModelError, match=r"vision_cfg\.head_width is 32 in the model and"):
        load_pretrained(pmc_clip.PMCCLIP(other, pretrained_text=False), pretrained)


def test_padding_and_initial_values_may_be_chosen_anew_for_training(golden_config, golden_model, tmp_path):
    save_folder(golden_model, tmp_path / "exported")
    text = replace(golden_config.text_cfg, mask_padding=True)
    model = pmc_clip.PMCCLIP(
        replace(golden_config, text_cfg=text, init_logit_scale=1.0), pretrained_text=False
    )
    load_pretrained(model, read_pretrained(tmp_path / "exported"))
    torch.testing.assert_close(model.logit_scale, golden_model.logit_scale, rtol=0, atol=0)


# The hub


@pytest.mark.parametrize("name", ["beta", "PMC_CLIP:beta", "pmc_clip:BETA"])
def test_tag_is_read_from_the_hub_once(hub, assert_golden, name):
    for _ in range(2):
        pretrained = read_pretrained(name)
        assert (pretrained.source, pretrained.config) == ("PMC_CLIP:beta", None)
    assert_golden(pretrained)
    assert [sent[0] for sent in hub.sent] == ["checkpoint.pt"]


def test_split_tag_reads_the_three_files(split_folder, point_to):
    files = {name: (split_folder / name).read_bytes() for name in SPLIT_FILES}
    with HubServer("axiong/pmc_oa", files) as server:
        point_to(server.endpoint)
        pretrained = read_pretrained("PMC_CLIP:split")
    assert (pretrained.layout, pretrained.config) == ("split", pmc_clip.load_model_config("RN50_split"))
    assert pretrained.state_dict["logit_scale"].item() == pytest.approx(4.4292)


def test_every_tag_names_a_model_of_the_package():
    assert list_pretrained() == [("RN50_fusion4", "beta"), ("RN50_fusion4", "RC"), ("RN50_split", "split")]
    assert {model for model, _ in list_pretrained()} <= set(pmc_clip.list_models())


def test_exported_folder_comes_from_a_model_repository(model_hub, golden_model, assert_golden, tmp_path):
    save_folder(golden_model, tmp_path / "exported")
    model_hub.files |= {path.name: path.read_bytes() for path in (tmp_path / "exported").iterdir()}
    for name in ("hf-hub:someone/model", "hf-hub:someone/model@main"):
        pretrained = read_pretrained(name)
        assert (pretrained.layout, pretrained.source) == ("folder", name)
        assert_golden(pretrained)
    captions = ["Axial CT of the chest."]
    tokens = [pmc_clip.get_tokenizer(config)(captions) for config in (golden_model.config, pretrained.config)]
    assert torch.equal(*tokens)


def test_single_files_come_from_a_model_repository(model_hub, golden_file, assert_golden):
    model_hub.files |= {name: golden_file.read_bytes() for name in ("checkpoint.pt", "old/epoch 1.pt")}
    for name in ("hf-hub:someone/model", "hf-hub:someone/model/old/epoch 1.pt@main"):
        assert_golden(read_pretrained(name))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hf-hub:someone", "expected hf-hub:owner/name"),
        ("hf-hub:some one/mod--el", "no name of a repository"),
        ("hf-hub:someone/other", "no such repository at http"),
        ("hf-hub:someone/model@gone", "no such revision at http"),
        ("hf-hub:someone/model", r"has no config\.json with model\.safetensors.*: it has notes\.txt"),
        ("hf-hub:someone/model/absent.pt", r"has no absent\.pt: it has notes\.txt"),
    ],
)
def test_what_the_hub_does_not_have_is_named(model_hub, name, told):
    model_hub.files["notes.txt"] = b"nothing here"
    with pytest.raises(pmc_clip.ModelError, match=told):
        read_pretrained(name)


@pytest.mark.parametrize("refused", ["/", "/datasets"])
def test_gated_repository_says_what_opens_it(hub, refused):
    hub.refusal, hub.refused = (403, "GatedRepo"), refused
    with pytest.raises(pmc_clip.ModelError, match=r"axiong/pmc_oa_beta: .* refuses access: .* set HF_TOKEN"):
        read_pretrained("beta")


def test_no_network_is_no_obstacle_when_cached(hub, point_to, assert_golden):
    read_pretrained("beta")
    point_to("http://127.0.0.1:9")
    assert_golden(read_pretrained("beta"))


def test_no_network_is_said_soon_when_not_cached(point_to):
    point_to("http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(
        pmc_clip.ModelError, match=r"cannot be fetched from http://127\.0\.0\.1:9 \(.*HF_ENDPOINT"
    ):
        read_pretrained("beta")
    assert time.monotonic() - began < 15  # hf_hub_download alone tries again for half a minute


def test_broken_hub_is_no_obstacle_when_cached(hub, assert_golden):
    read_pretrained("beta")
    hub.refusal = (500, "")
    assert_golden(read_pretrained("beta"))


def test_offline_is_no_obstacle_when_cached(hub, assert_golden, monkeypatch):
    read_pretrained("beta")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as the variable of that name sets it
    assert_golden(read_pretrained("beta"))
    with pytest.raises(pmc_clip.ModelError, match="data set axiong/pmc_oa: HF_HUB_OFFLINE is set: unset it"):
        read_pretrained("RC")


@pytest.mark.slow
def test_offline_variable_is_respected_by_a_new_process(hub, tmp_path):
    tensors = len(read_pretrained("beta").state_dict)
    program = """
from pmc_clip import ModelError
from pmc_clip.pretrained import read_pretrained
print(len(read_pretrained("beta").state_dict))
try:
    read_pretrained("RC")
except ModelError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found, said = done.stdout.splitlines()
    assert int(found) == tensors
    assert "data set axiong/pmc_oa: HF_HUB_OFFLINE is set: unset it to download what is missing" in said


def test_bytes_damaged_on_their_way_are_not_loaded(hub, tmp_path, assert_golden):
    hub.damaged = True
    with pytest.raises(pmc_clip.ModelError, match="damaged, here or on its way: delete this file") as told:
        read_pretrained("beta")
    hub.damaged = False
    Path(str(told.value).split(": ")[0]).unlink()
    assert_golden(read_pretrained("beta"))


@pytest.mark.parametrize("offline", [False, True])
def test_cached_file_damaged_later_is_named(hub, tmp_path, monkeypatch, offline):
    read_pretrained("beta")
    (blob,) = (path for path in (tmp_path / "hub").rglob("blobs/*") if path.stat().st_size > 1000)
    with open(blob, "r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(pmc_clip.ModelError, match=f"^{blob}: not what checkpoint.pt of data set"):
        read_pretrained("beta")


def test_hub_file_that_wants_code_to_run_is_refused(hub, tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "run"), "w"))

    hub.files["checkpoint.pt"] = packed({"state_dict": Payload()})
    with pytest.raises(
        pmc_clip.ModelError, match=r"open would have to be run, and a checkpoint may not run code"
    ):
        read_pretrained("beta")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def little_room():
    """A disk that takes no more than 100 kB into a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("little_room")
def test_full_disk_is_said_by_either_way(hub, tmp_path):
    with pytest.raises(pmc_clip.ModelError, match=r"cannot be written into the cache .* set HF_HOME"):
        read_pretrained("beta")
    with pytest.raises(pmc_clip.ModelError, match=r"cannot be written into .* XDG_CACHE_HOME"):
        read_pretrained(f"{hub.endpoint}/storage/checkpoint.pt")
    assert "checkpoint.pt" not in cached_files(tmp_path)


# Other addresses


def test_web_address_is_downloaded_once_and_again_when_it_changed(hub, assert_golden, golden_state):
    address = f"{hub.endpoint}/storage/checkpoint.pt?signature=a/b"
    for _ in range(2):
        pretrained = read_pretrained(address)
    assert_golden(pretrained)
    assert len(hub.sent) == 1
    assert set(hub.asked) == {"/storage/checkpoint.pt?signature=a/b"}
    changed = {
        name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in golden_state.items()
    }
    hub.files["checkpoint.pt"] = packed({"epoch": 2, "name": "new", "state_dict": changed})
    found = read_pretrained(address).state_dict["logit_scale"]
    assert torch.equal(found, golden_state["module.logit_scale"] + 1)


def test_interrupted_download_leaves_nothing_that_passes_for_the_file(hub, assert_golden, tmp_path):
    hub.cuts_after = 1 << 20
    address = f"{hub.endpoint}/storage/checkpoint.pt"
    with pytest.raises(pmc_clip.ModelError, match=r"storage/checkpoint\.pt: cannot be fetched"):
        read_pretrained(address)
    assert cached_files(tmp_path) == set()
    assert_golden(read_pretrained(address))


def test_web_server_in_trouble_is_no_obstacle_when_cached(hub, assert_golden, caplog):
    address = f"{hub.endpoint}/storage/checkpoint.pt"
    read_pretrained(address)
    hub.refusal = (503, "")
    assert_golden(read_pretrained(address))
    assert "the copy in" in caplog.text
    hub.files["other.pt"] = b""
    with pytest.raises(
        pmc_clip.ModelError, match=r"other\.pt: cannot be fetched \(503.*: check the address, the"
    ):
        read_pretrained(address.replace("checkpoint", "other"))


def test_web_server_that_is_not_there_is_said():
    with pytest.raises(
        pmc_clip.ModelError, match=r"/a\.pt: cannot be fetched \(.*: check the address, the network"
    ):
        read_pretrained("http://127.0.0.1:9/a.pt")


def test_what_a_web_server_does_not_have_is_named(hub):
    with pytest.raises(pmc_clip.ModelError, match=r"/nowhere: has no absent\.pt: check the address"):
        read_pretrained(f"{hub.endpoint}/nowhere/absent.pt")


def test_s3_holds_single_files_and_whole_folders(s3, golden_model, golden_file, assert_golden, tmp_path):
    save_folder(golden_model, tmp_path / "exported")
    storage = s3fs.S3FileSystem()
    storage.put(str(tmp_path / "exported"), f"{s3}/weights/exported", recursive=True)
    storage.put(str(golden_file), f"{s3}/weights/run/step-00000001.pt")
    storage.pipe(f"{s3}/weights/run/latest", b"step-00000001.pt\n")
    for name in ("exported", "exported/", "run/latest", "run/step-00000001.pt", "run"):
        assert_golden(read_pretrained(f"{s3}/weights/{name}"))
    with pytest.raises(pmc_clip.ModelError, match=r"weights/run: has no absent\.pt: check the address"):
        read_pretrained(f"{s3}/weights/run/absent.pt")


def test_changed_file_on_s3_is_downloaded_again_and_an_unchanged_one_is_not(s3, golden_file, tmp_path):
    address = f"{s3}/changing/checkpoint.pt"
    storage = s3fs.S3FileSystem()
    storage.put(str(golden_file), address)
    read_pretrained(address)
    (kept,) = (tmp_path / "cache").rglob("checkpoint.pt")
    first = kept.stat().st_ino, kept.stat().st_mtime_ns
    read_pretrained(address)
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == first
    content = pmc_clip.load_checkpoint_file(golden_file)
    content["state_dict"]["module.logit_scale"] = torch.tensor(1.5)
    storage.pipe(address, packed(content))
    assert read_pretrained(address).state_dict["logit_scale"] == 1.5


@pytest.mark.parametrize(
    ("address", "told"),
    [("nosuch://bucket/checkpoint.pt", "is not known"), ("adl://bucket/checkpoint.pt", "is not installed")],
)
def test_address_of_an_unknown_kind_is_said(address, told):
    with pytest.raises(pmc_clip.ModelError, match=f"^{address}: .*{told}"):
        read_pretrained(address)
