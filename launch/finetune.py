"""Fine-tune from predicted and random parameters; same as `ghn-jax finetune`, see `--help`."""

from ghn_jax.cli.main import launch

if __name__ == "__main__":
    launch("finetune")
