"""Predict the parameters of one network; installed as `ghn-jax predict`. `--help` says how."""

from ghn_jax.cli.predict import run

if __name__ == "__main__":
    run()
