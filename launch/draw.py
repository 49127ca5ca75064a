"""Draw a network's graph; installed as `ghn-jax draw`. `--help` says how."""

from ghn_jax.cli.draw import run

if __name__ == "__main__":
    run()
