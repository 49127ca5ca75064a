"""Predict the parameters of one network; same as `ghn-jax predict`, see `--help`."""

from ghn_jax.cli.predict import run

if __name__ == "__main__":
    run()
