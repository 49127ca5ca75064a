"""The rules, one file per kind of primitive; importing them fills the table."""

from ghn_jax.tracing.rules import arithmetic, control, layout, linear, lookups, pooling

__all__ = ["arithmetic", "control", "layout", "linear", "lookups", "pooling"]
