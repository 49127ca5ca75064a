"""Compile the programs that training will need; same as `ghn-jax warmup`, see `--help`."""

from ghn_jax.cli.main import launch

if __name__ == "__main__":
    launch("warmup")
