"""Where a GHN lies: a path, the name of one that comes with the package, an address on the hub."""

import os
from pathlib import Path

from ghn_jax.interop.hub import PREFIX, fetch_from_hub

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"


def resolve(path: str | os.PathLike[str]) -> Path:
    """The path that a path, the name of a packaged GHN or an address on the hub stands for."""
    name = os.fspath(path)
    if name.startswith(PREFIX):
        return fetch_from_hub(name)
    packaged = CHECKPOINTS / name
    return packaged if not Path(path).exists() and packaged.is_dir() else Path(path)
