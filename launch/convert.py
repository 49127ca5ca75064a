"""Convert checkpoints from and to the official format; same as `ghn-jax convert`, see `--help`."""

from ghn_jax.cli.main import launch

if __name__ == "__main__":
    launch("convert")
