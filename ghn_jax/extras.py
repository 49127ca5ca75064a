"""Packages that only some features need, installed by e.g. `pip install 'ghn_jax[train]'`.

The package alone loads GHNs and predicts. The additional packages that training, drawing, published
files and data sets need belong to extras; if one is missing, an error names it and its extra.
"""

import contextlib
from collections.abc import Iterator


class MissingExtraError(ImportError):
    """Raised if a package of an extra is not installed."""


@contextlib.contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Import packages of an extra inside this context.

    Args:
        name: Name of the extra, as in `pip install 'ghn_jax[name]'`.
        purpose: What needs the packages, as a plural for the error.

    Raises:
        MissingExtraError: If a package is not installed; it names the package, the purpose and the
            extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "ghn_jax":
            raise
        raise MissingExtraError(
            f"{purpose} need {error.name}, which is not installed: pip install 'ghn_jax[{name}]'",
            name=error.name,
        ) from error
