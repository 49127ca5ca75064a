"""Evaluate what a GHN predicts; installed as `ghn-jax evaluate`. `--help` says how."""

from ghn_jax.cli.evaluate import run

if __name__ == "__main__":
    run()
