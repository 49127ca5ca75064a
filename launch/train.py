"""Train a GHN; installed as `ghn-jax train`. `--help` says how."""

from ghn_jax.cli.train import run

if __name__ == "__main__":
    run()
