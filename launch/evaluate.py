"""Evaluate what a GHN predicts; same as `ghn-jax evaluate`, see `--help`."""

from ghn_jax.cli.evaluate import run

if __name__ == "__main__":
    run()
