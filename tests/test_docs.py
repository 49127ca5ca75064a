"""The code in the documentation runs as it stands, block after block of each page."""

import contextlib
import io
from pathlib import Path

import jax
import pytest
from test_readme import code_blocks

PAGES = sorted((Path(__file__).resolve().parents[1] / "docs").glob("*.md"))
# Blocks that stand alone and need what a reader has: files, a network, time.
EXECUTED = ("model.md",)


@pytest.fixture
def as_users_have_it():
    """JAX's own rules for dtypes and ranks."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name in EXECUTED], ids=str)
def test_code_of_a_page_runs(page, as_users_have_it):
    blocks = code_blocks(page.read_text(encoding="utf-8"), "python")
    assert len(blocks) >= 3
    names: dict[str, object] = {"__name__": page.stem}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(compile(block, page.name, "exec"), names)
    assert "Conv_0/kernel kernel (3, 3, 3, 16)" in printed.getvalue()
