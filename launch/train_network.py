"""Train one network from scratch; installed as `ghn-jax train-network`. `--help` says how."""

from ghn_jax.cli.train_network import run

if __name__ == "__main__":
    run()
