"""Draw a network's graph; same as `ghn-jax draw`, see `--help`."""

from ghn_jax.cli.main import launch

if __name__ == "__main__":
    launch("draw")
