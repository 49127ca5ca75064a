"""Compile the programs that training will need; same as `ghn-jax warmup`, see `--help`."""

from ghn_jax.cli.warmup import run

if __name__ == "__main__":
    run()
