"""Draw how alike predicted filters are; installed as `ghn-jax diagnose`. `--help` says how."""

from ghn_jax.cli.diagnose import run

if __name__ == "__main__":
    run()
