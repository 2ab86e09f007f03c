"""A pretrained BERT is taken as it is, or refused where the config says another."""

import json
import shutil

import pytest

import pmc_clip


@pytest.fixture
def bert_folder(golden, tmp_path):
    """The golden BERT's config, without weights, in a folder of its own."""
    shutil.copy(golden / "bert" / "config.json", tmp_path / "config.json")
    return tmp_path


def _create(golden, folder, bert=None):
    settings = json.loads((golden / "config.json").read_text())["model"]
    settings["text_cfg"] |= {"bert_model_name": str(folder), "bert": bert}
    return pmc_clip.create_model(pmc_clip.ModelConfig.from_dict(settings), pretrained_text=False)


def test_shape_comes_from_the_named_bert(golden, bert_folder):
    told = json.loads((bert_folder / "config.json").read_text())
    tower = _create(golden, bert_folder).text_encoder
    assert len(tower.encoder["layer"]) == told["num_hidden_layers"]
    assert tower.embeddings.word_embeddings.num_embeddings == told["vocab_size"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_act", "silu", "hidden_act is 'silu': choose one of gelu"),
        ("hidden_size", 96, "bert.hidden_size is 96"),
        ("num_hidden_layers", 7, "bert.num_hidden_layers is 7"),
        ("max_position_embeddings", 8, "max_position_embeddings is 8: raise it"),
    ],
)
def test_bert_that_does_not_fit_is_named_with_the_field(golden, bert_folder, field, value, message):
    file = bert_folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(pmc_clip.ModelError, match=message) as refused:
        _create(golden, bert_folder)
    assert str(bert_folder) in str(refused.value)
