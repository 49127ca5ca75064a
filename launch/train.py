"""Train a GHN; same as `ghn-jax train`, see `--help`."""

from ghn_jax.cli.train import run

if __name__ == "__main__":
    run()
