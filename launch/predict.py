"""Predict the parameters of one network; same as `ghn-jax predict`, see `--help`."""

from ghn_jax.cli.main import launch

if __name__ == "__main__":
    launch("predict")
