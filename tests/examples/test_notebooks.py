"""The notebooks run from top to bottom, with a few steps, and show pictures."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.golden import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def test_there_are_five() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["driving", "indoor", "medical", "microscopy", "satellite"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_pictures(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # outputs are the reader's
    assert '`pip install -e ".[notebooks]"`' in notebook.cells[0].source
    assert "STEPS = 300" in notebook.cells[1].source
    notebook.cells[1].source = notebook.cells[1].source.replace("STEPS = 300", "STEPS = 2")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert any("text/html" in output.get("data", {}) for output in outputs) or path.stem == "microscopy"
