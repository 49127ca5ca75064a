"""Plot how similar predicted filters are; same as `ghn-jax diagnose`, see `--help`."""

from ghn_jax.cli.diagnose import run

if __name__ == "__main__":
    run()
