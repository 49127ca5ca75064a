"""Plot how similar predicted filters are; same as `ghn-jax diagnose`, see `--help`."""

from ghn_jax.cli.main import launch

if __name__ == "__main__":
    launch("diagnose")
