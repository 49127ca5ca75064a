"""Train one network from scratch; same as `ghn-jax train-network`, see `--help`."""

from ghn_jax.cli.main import launch

if __name__ == "__main__":
    launch("train-network")
