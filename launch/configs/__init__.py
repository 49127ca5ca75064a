"""Configurations of training runs: each module's `get_config` returns a ConfigDict."""
