"""Evaluate what a GHN predicts; same as `ghn-jax evaluate`, see `--help`."""

from ghn_jax.cli.main import launch

if __name__ == "__main__":
    launch("evaluate")
