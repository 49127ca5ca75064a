"""Names for types that Python's checkers cannot tell apart."""

from typing import Any

Array = Any
"""A numpy or a JAX array."""
PyTree = Any
"""Nested dictionaries, lists and tuples of arrays."""
TreePath = tuple[str, ...]
"""The names that lead to a leaf of such a tree."""
