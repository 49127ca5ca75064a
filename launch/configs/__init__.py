"""Configurations of runs; the `get_config` of each module returns a ConfigDict."""
