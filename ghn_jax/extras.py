"""Packages that only some parts need: `pip install 'ghn_jax[train]'` brings them.

The package alone loads GHNs and predicts. What training, drawing, published files and data sets
need besides belongs to an extra, and what is missing is an error that names it.
"""

import contextlib
from collections.abc import Iterator


class MissingExtraError(ImportError):
    """A package of an extra is not installed."""


@contextlib.contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Import packages of an extra inside this context.

    Args:
        name: Of the extra, as in `pip install 'ghn_jax[name]'`.
        purpose: What needs them, plural, for the error.

    Raises:
        MissingExtraError: If one is not installed; names it, the purpose and the extra.
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
