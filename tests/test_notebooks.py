"""Every notebook runs from top to bottom, from any folder."""

import tomllib
from pathlib import Path

import nbclient
import nbformat
import pytest

from ghn_jax.interop.locations import CHECKPOINTS

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
URL = PROJECT["urls"]["Repository"]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def pictures_per_cell(notebook: nbformat.NotebookNode) -> list[int]:
    """How many pictures each code cell shows."""
    return [
        sum("image/png" in output.get("data", {}) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_notebooks_of_the_readme_are_there():
    names = {path.name for path in NOTEBOOKS}
    assert names >= {"quickstart.ipynb", "predict_your_model.ipynb"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs"), cell.source
        assert cell.get("execution_count") is None, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_opens_and_installs_on_colab(path):
    text, install = (cell.source for cell in nbformat.read(path, as_version=4).cells[:2])
    github = URL.removeprefix("https://github.com/")
    opened = f"https://colab.research.google.com/github/{github}/blob/main/notebooks/{path.name}"
    assert f"colab-badge.svg)]({opened})" in text
    assert "[![Open in Colab]" in text and opened in (REPOSITORY / "README.md").read_text("utf-8")
    assert f'%pip install --quiet "ghn_jax[train] @ git+{URL}"' in install


@pytest.mark.skipif(
    not (CHECKPOINTS / "digits").is_dir(),
    reason="the packaged checkpoint ghn_jax/checkpoints/digits is not there",
)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    assert sum(pictures_per_cell(notebook)) == 3
    printed = "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr"
    )
    assert "Warning" not in printed, printed
