"""Train one network from scratch; same as `ghn-jax train-network`, see `--help`."""

from ghn_jax.cli.train_network import run

if __name__ == "__main__":
    run()
