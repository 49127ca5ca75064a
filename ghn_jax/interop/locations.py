"""Locations of GHNs: a path, the name of one that comes with the package, or a hub address."""

from pathlib import Path

from ghn_jax.interop.hub import PREFIX, fetch_from_hub

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"


def resolve(path: str | Path) -> Path:
    """Return the path of a GHN given by path, by the name of a packaged one, or by hub address."""
    if str(path).startswith(PREFIX):
        return fetch_from_hub(str(path))
    packaged = CHECKPOINTS / str(path)
    return packaged if not Path(path).exists() and packaged.is_dir() else Path(path)
