"""The notebook runs to its end, without a network, on what the tests have installed."""

import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat (extra notebook)")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient (extra notebook)")
pytest.importorskip("ipykernel", reason="needs ipykernel (extra notebook)")

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "try_it.ipynb"


@pytest.mark.filterwarnings("default")  # those of Jupyter's own libraries
def test_every_cell_but_the_installation_runs(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]
    install = [c for c in notebook.cells if "install" in c.metadata.get("tags", ())]
    assert len(install) == 1 and "%pip install" in install[0].source
    notebook.cells.remove(install[0])
    # A kernel of this Python, whatever kernels are registered.
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    text = '{"argv": %s, "display_name": "tests", "language": "python"}'
    (spec / "kernel.json").write_text(text % str(command).replace("'", '"'))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRY_IT_FOLDER", str(tmp_path / "work"))
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    *_, tuned, _ = notebook.cells
    assert "torch.Size([1, " in tuned.outputs[-1]["data"]["text/plain"]
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells[:-2]
        for output in cell.get("outputs", ())
    )
    assert printed.count("SI-SDRi") >= 2  # of the model, and of the one that was tuned
    shown = [o for c in notebook.cells for o in c.get("outputs", ()) if "data" in o]
    assert sum("image/png" in output["data"] for output in shown) == 1
