"""Predict the parameters of neural networks that were never trained, in JAX."""

import importlib
from typing import Any

__version__ = "0.2.0.dev0"

# Imported on first use: `import ghn_jax` alone should not take seconds.
_EXPORTS = {
    "Architecture": "ghn_jax.architectures",
    "GHN": "ghn_jax.pretrained",
    "GHNConfig": "ghn_jax.hypernetworks",
    "Genotype": "ghn_jax.architectures",
    "Prediction": "ghn_jax.pretrained",
    "ResNet": "ghn_jax.architectures",
    "SpaceConfig": "ghn_jax.sampling",
    "VIT": "ghn_jax.architectures",
    "calibrate_batch_stats": "ghn_jax.tracing",
    "draw": "ghn_jax.drawing",
    "load": "ghn_jax.pretrained",
    "load_dataset": "ghn_jax.data",
    "register_rule": "ghn_jax.tracing",
    "sample_architecture": "ghn_jax.sampling",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ghn_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
