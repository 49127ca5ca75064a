"""Compile ahead what training will need; installed as `ghn-jax warmup`. `--help` says how."""

from ghn_jax.cli.warmup import run

if __name__ == "__main__":
    run()
