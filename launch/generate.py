"""Write a split in the published file format; same as `ghn-jax generate`, see `--help`."""

from ghn_jax.cli.main import launch

if __name__ == "__main__":
    launch("generate")
