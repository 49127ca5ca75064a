"""Names for types that type checkers cannot tell apart."""

from typing import Any

Array = Any
"""A numpy or a JAX array."""
PyTree = Any
"""Nested dictionaries, lists and tuples of arrays."""
TreePath = tuple[str, ...]
"""The keys on the path to a leaf of such a tree."""
