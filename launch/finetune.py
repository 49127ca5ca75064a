"""Fine-tune from predicted and from random parameters: `ghn-jax finetune`. `--help` says how."""

from ghn_jax.cli.finetune import run

if __name__ == "__main__":
    run()
