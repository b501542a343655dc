"""The notebooks run from top to bottom, with small settings, and are kept clean."""

import os
import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Name in the notebook -> value for the test.
SMALL = {"EPOCHS": "1"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs(path):
    nbformat = pytest.importorskip("nbformat")
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs") and not cell.get("execution_count")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    replaced = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for name, value in SMALL.items():
                cell.source, count = re.subn(
                    rf"^{name} = \d+", f"{name} = {value}", cell.source, flags=re.M
                )
                replaced += count
    assert replaced == len(SMALL)
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    text = "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "integers only: yes" in text and "x smaller after gzip" in text
