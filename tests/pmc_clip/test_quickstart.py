"""docs/quickstart.ipynb, executed as a user would, in a kernel of its own that has no network."""

import base64
import io
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

import pmc_clip

PROJECT = Path(__file__).parents[2]
NOTEBOOK = PROJECT / "docs" / "quickstart.ipynb"


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """`execute(PMC_CLIP_MODEL="tiny")`: the notebook's cells with what they gave."""

    def execute_notebook(**environment: str) -> list[nbformat.NotebookNode]:
        offline = {
            "HF_HUB_OFFLINE": "1",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
        }
        own = {"PYTHONPATH": str(PROJECT), "MPLCONFIGDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
        for name, value in {**offline, **own, **environment}.items():
            monkeypatch.setenv(name, value)
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
        client.execute()
        return [cell for cell in notebook.cells if cell.cell_type == "code"]

    return execute_notebook


def pictures(cells: list[nbformat.NotebookNode]) -> list[np.ndarray]:
    """The pictures that the cells gave, in grey."""
    encoded = [
        output.data["image/png"]
        for cell in cells
        for output in cell.outputs
        if output.output_type == "display_data"
    ]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")) for data in encoded]


def printed(cells: list[nbformat.NotebookNode]) -> str:
    return "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")


def test_the_notebook_shows_its_pictures_with_the_users_own_weights_and_figures(execute, tmp_path):
    torch.manual_seed(0)
    pmc_clip.save_folder(pmc_clip.create_model("tiny", mlm=False), tmp_path / "weights")
    (tmp_path / "figures").mkdir()
    lines = ["image,caption"]
    for number, mode in enumerate(("L", "RGBA", "RGB", "P")):
        Image.linear_gradient("L").rotate(90 * number).convert(mode).save(
            tmp_path / "figures" / f"{number}.png"
        )
        lines.append(f'{number}.png,"A ramp of shades, turned {number} times."')
    (tmp_path / "table.csv").write_text("\n".join(lines))
    cells = execute(
        PMC_CLIP_MODEL="",
        PMC_CLIP_PRETRAINED=str(tmp_path / "weights"),
        PMC_CLIP_TABLE=str(tmp_path / "table.csv"),
        PMC_CLIP_IMAGES=str(tmp_path / "figures"),
    )
    assert "3: A ramp of shades, turned 3 times." in printed(cells)
    assert "of 4 captions find their own figure first" in printed(cells)
    shown = pictures(cells)
    assert len(shown) == 4
    assert all(min(picture.shape) > 200 and picture.std() > 20 for picture in shown)


@pytest.mark.slow
def test_the_notebook_draws_figures_and_fills_in_a_hidden_word_where_the_user_has_none(execute):
    cells = execute(PMC_CLIP_MODEL="tiny", PMC_CLIP_PRETRAINED="")
    assert "of 8 captions find their own figure first" in printed(cells)
    assert "[MASK]" in printed(cells)
    assert len(pictures(cells)) == 4


def test_the_notebook_is_kept_without_outputs_and_asks_for_the_published_weights():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    settings: dict[str, object] = {}
    exec(code[0].source, settings)
    assert (settings["MODEL"], settings["PRETRAINED"], settings["TABLE"]) == ("RN50_fusion4", "beta", "")
