"""Convert checkpoints from and to the official format; same as `ghn-jax convert`, see `--help`."""

from ghn_jax.cli.convert import run

if __name__ == "__main__":
    run()
