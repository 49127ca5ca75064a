"""Write a split of architectures as published files: `ghn-jax generate`. `--help` says how."""

from ghn_jax.cli.generate import run

if __name__ == "__main__":
    run()
