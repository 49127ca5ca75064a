"""Locations of GHNs: a path, the name of one that comes with the package, or a hub address."""

import os
from pathlib import Path

from ghn_jax.interop.hub import PREFIX, fetch_from_hub

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"


def resolve(path: str | os.PathLike[str]) -> Path:
    """Return the path of a GHN given by path, by the name of a packaged one, or by hub address."""
    name = os.fspath(path)
    if name.startswith(PREFIX):
        return fetch_from_hub(name)
    packaged = CHECKPOINTS / name
    return packaged if not Path(path).exists() and packaged.is_dir() else Path(path)
