"""notebooks/quickstart.ipynb runs from top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import ROOT, SMALL

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    small = [one for one in SMALL if not one.startswith("evaluator.figures")]
    monkeypatch.setenv("QUICKSTART_LENGTHS", " ".join([*small, "evaluator.figures=1"]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # as it is committed
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": "."}})
    client.execute()
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", ())
             for kind in output.get("data", ())}  # fmt: skip
    assert {"text/html", "image/png"} <= kinds  # a data frame and a picture
    text = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", ()))
    assert "anomaly_values" in text  # of one's own data set
