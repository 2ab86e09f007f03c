"""A BERT with two names on the hub is found under either."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pmc_clip
from pmc_clip.bert_names import names_to_try, read_under_any_name

OLD = "BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext"
NEW = "BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext"


@pytest.mark.parametrize(("given", "other"), [(OLD, NEW), (NEW, OLD)])
def test_given_name_comes_first_unless_only_the_other_is_at_hand(tmp_path, given, other):
    name, alias = f"{tmp_path}/{given}", f"{tmp_path}/{other}"
    assert names_to_try(name) == [name, alias]
    Path(alias).mkdir()
    assert names_to_try(name) == [alias, name]
    Path(name).mkdir()
    assert names_to_try(name) == [name, alias]


@pytest.mark.parametrize("name", ["bert-base-uncased", "someone/other-bert", "folder/with/bert"])
def test_other_names_stand_alone(name):
    assert names_to_try(name) == [name]


def test_name_that_holds_nothing_usable_gives_way_to_the_other(tmp_path):
    for name in (OLD, NEW):
        (tmp_path / name).mkdir()
    (tmp_path / NEW / "vocab.txt").write_text("found")
    assert (
        read_under_any_name(f"{tmp_path}/{OLD}", lambda name: Path(name, "vocab.txt").read_text()) == "found"
    )


def test_error_is_of_the_given_name_where_no_name_can_be_read(tmp_path):
    (tmp_path / NEW).mkdir()
    with pytest.raises(FileNotFoundError, match="PubMedBERT"):
        read_under_any_name(f"{tmp_path}/{OLD}", lambda name: Path(name, "vocab.txt").read_text())


def _settings(golden: Path, name: str) -> dict:
    """The golden model's config, with its text tower under a name and no shape."""
    settings = json.loads((golden / "config.json").read_text())["model"]
    settings["text_cfg"]["bert_model_name"] = name
    return settings


def _save_bert(golden: Path, folder: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(5)
    BertModel(BertConfig.from_pretrained(golden / "bert")).save_pretrained(folder)
    for file in (golden / "bert").iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())


def test_text_tower_and_vocabulary_are_read_from_a_folder_of_the_other_name(golden, golden_config, tmp_path):
    _save_bert(golden, tmp_path / NEW)
    config = pmc_clip.ModelConfig.from_dict(_settings(golden, f"{tmp_path}/{OLD}"))
    tower = pmc_clip.create_model(config, mlm=False).text_encoder
    from transformers import BertModel

    saved = BertModel.from_pretrained(tmp_path / NEW)
    assert torch.equal(tower.embeddings.word_embeddings.weight, saved.embeddings.word_embeddings.weight)
    assert pmc_clip.get_tokenizer(config).fingerprint() == pmc_clip.get_tokenizer(golden_config).fingerprint()


@pytest.mark.slow
def test_text_tower_and_vocabulary_are_read_from_a_cache_of_the_other_name(golden, tmp_path):
    """In a process of its own: the hub's library looks for its cache once, where it is imported."""
    repository = tmp_path / "hub" / f"models--microsoft--{NEW}"
    _save_bert(golden, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    (tmp_path / "model.json").write_text(json.dumps(_settings(golden, f"microsoft/{OLD}")))
    code = """
import pmc_clip, sys
model = pmc_clip.create_model(sys.argv[1], mlm=False)
print(model.text_encoder.embeddings.word_embeddings.weight.sum().item())
assert pmc_clip.get_tokenizer(sys.argv[1])(["chest"]).shape[0] == 1
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.json")],
        env={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(tmp_path)},
        check=False,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    from transformers import BertModel

    saved = BertModel.from_pretrained(repository / "snapshots" / "0123")
    assert float(done.stdout) == pytest.approx(saved.embeddings.word_embeddings.weight.sum().item(), abs=1e-4)
