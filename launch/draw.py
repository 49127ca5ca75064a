"""Draw a network's graph; same as `ghn-jax draw`, see `--help`."""

from ghn_jax.cli.draw import run

if __name__ == "__main__":
    run()
