"""The Python of docs/model.md, run from top to bottom in one session, with tiny models."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import pmc_clip

GUIDE = (Path(__file__).parents[2] / "docs" / "model.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def session(tmp_path, monkeypatch, capsys) -> dict[str, object]:
    """What the guide's Python has made at its end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pmc_clip.config._added", {})  # what the guide adds is this test's alone
    torch.manual_seed(0)
    tiny = pmc_clip.load_model_config("tiny")
    published = replace(tiny, text_cfg=replace(tiny.text_cfg, mask_padding=False))
    Path("published.json").write_text(json.dumps(published.to_dict()))
    pmc_clip.save_folder(pmc_clip.create_model(published), "weights")
    Image.linear_gradient("L").save("figure.jpg")
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models" / "guide.json").write_text(json.dumps(tiny.to_dict()))
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS, 1):
        small = block.replace('"RN50_fusion4"', '"published.json"').replace('"beta"', '"./weights"')
        exec(compile(small, f"block {number} of docs/model.md", "exec"), names)
    return names


def test_the_guides_python_runs_and_gives_what_it_says(session):
    assert len(BLOCKS) == 8
    assert session["similarity"].shape == (1, 2)
    assert torch.allclose(session["probabilities"].sum(-1), torch.ones(1))
    assert len(session["guesses"]) == 5
    assert "guide" in pmc_clip.list_models()
    assert session["masked"].shape[1] == 8 * -(-session["masked"].shape[1] // 8) < 77
    assert torch.isfinite(session["total"])
    assert torch.isfinite(session["losses"].total)
    exported, _, _ = pmc_clip.create_model_and_transforms(pretrained="exported")
    assert exported.config.text_cfg.mask_padding
    assert Path("checkpoint.pt").stat().st_size > 10**6
