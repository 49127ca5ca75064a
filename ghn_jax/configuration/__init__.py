"""Configs: checks of values, and conversion between dataclasses and the contents of files."""
