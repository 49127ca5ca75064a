"""Convert official checkpoints, and back; installed as `ghn-jax convert`. `--help` says how."""

from ghn_jax.cli.convert import run

if __name__ == "__main__":
    run()
