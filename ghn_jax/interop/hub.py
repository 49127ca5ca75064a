"""GHNs on the Hugging Face hub.

In: `hf:OWNER/NAME/FILE.pt`, an official file, or `hf:OWNER/NAME` or `hf:OWNER/NAME/FOLDER`, a work
directory of training that someone uploaded; `@REVISION` may follow NAME. Out: its path on this
machine, in the hub's own cache, to which it is downloaded, showing progress, if it is not there.
"""

from __future__ import annotations

import re
from pathlib import Path

from ghn_jax.extras import extra

PREFIX = "hf:"
_SPEC = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<path>[\w./-]+))?"
)


def fetch_from_hub(spec: str) -> Path:
    """Return the file or folder that a spec names, downloading what the cache lacks.

    Args:
        spec: `hf:OWNER/NAME[@REVISION][/PATH]`; a PATH that ends in .pt is a file, any other a
            folder.

    Returns:
        Its path in the cache.

    Raises:
        ValueError: if `spec` has another form, names nothing on the hub, or is not in the cache and
            the hub cannot be reached.
        MissingExtraError: if `huggingface_hub` is not installed.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ValueError(f"path is {spec!r}, expected hf:OWNER/NAME[@REVISION][/PATH]")
    with extra("hub", "GHNs on the Hugging Face hub"):
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    repository, revision, path = match["repository"], match["revision"], match["path"]
    try:
        if path is not None and path.endswith(".pt"):
            return Path(huggingface_hub.hf_hub_download(repository, path, revision=revision))
        patterns = None if path is None else [f"{path}/*"]
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=patterns
        )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(f"path is {spec!r}, which the hub does not provide: {error}") from error
    found = Path(folder) / (path or "")
    if not found.is_dir():
        raise ValueError(f"path is {spec!r}, but {repository} has no folder {path!r}")
    return found
