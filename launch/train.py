"""Train a GHN; same as `ghn-jax train`, see `--help`."""

from ghn_jax.cli.main import launch

if __name__ == "__main__":
    launch("train")
