"""Model configs of the user's own, known by name once they were added."""

import json

import pytest

import pmc_clip
from pmc_clip import config as config_module


@pytest.fixture
def added_models():
    """Undoes what a test adds to the models known by name."""
    before = dict(config_module._added)
    yield
    config_module._added.clear()
    config_module._added.update(before)


@pytest.fixture
def settings() -> dict:
    return pmc_clip.load_model_config("tiny").to_dict()


def _write(path, settings: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


@pytest.mark.usefixtures("added_models")
def test_added_file_is_known_by_its_name(tmp_path, settings):
    settings["vision_cfg"]["image_size"] = 96
    _write(tmp_path / "tiny96.json", settings)
    assert pmc_clip.add_model_config(tmp_path / "tiny96.json") == ["tiny96"]
    (tmp_path / "tiny96.json").unlink()
    assert "tiny96" in pmc_clip.list_models()
    assert pmc_clip.load_model_config("tiny96").vision_cfg.image_size == 96
    assert pmc_clip.create_model("tiny96", mlm=False).config.vision_cfg.image_size == 96


@pytest.mark.usefixtures("added_models")
def test_added_folder_gives_all_its_models_below_it_too(tmp_path, settings):
    _write(tmp_path / "one.json", settings)
    _write(tmp_path / "deeper" / "two.json", settings)
    (tmp_path / "notes.txt").write_text("not a config")
    assert sorted(pmc_clip.add_model_config(tmp_path)) == ["one", "two"]
    assert {"one", "two", "RN50_fusion4"} <= set(pmc_clip.list_models())
    assert pmc_clip.add_model_config(str(tmp_path))  # again: they say the same, so nothing is wrong


@pytest.mark.usefixtures("added_models")
def test_broken_file_in_a_folder_is_named_and_nothing_is_added(tmp_path, settings):
    _write(tmp_path / "fine.json", settings)
    settings["embed_dim"] = 1
    _write(tmp_path / "wrong.json", settings)
    with pytest.raises(pmc_clip.ModelError, match=r"wrong\.json: embed_dim is 1"):
        pmc_clip.add_model_config(tmp_path)
    assert "fine" not in pmc_clip.list_models()


def test_folder_without_configs_is_refused(tmp_path):
    with pytest.raises(pmc_clip.ModelError, match=r"no \.json file is in this folder"):
        pmc_clip.add_model_config(tmp_path)


@pytest.mark.usefixtures("added_models")
def test_name_of_another_model_is_refused(tmp_path, settings):
    _write(tmp_path / "small.json", settings)
    with pytest.raises(pmc_clip.ModelError, match=r"small\.json: there is another model of the name 'small'"):
        pmc_clip.add_model_config(tmp_path)
    _write(tmp_path / "a" / "mine.json", settings)
    _write(tmp_path / "b" / "mine.json", settings | {"init_logit_scale": 1.0})
    (tmp_path / "small.json").unlink()
    with pytest.raises(pmc_clip.ModelError, match=r"b.mine\.json: there is another model of the name 'mine'"):
        pmc_clip.add_model_config(tmp_path)
    assert "mine" not in pmc_clip.list_models()
