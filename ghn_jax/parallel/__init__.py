"""Spread a meta batch over devices and processes: who works on what, and how gradients meet."""
