"""Predict the parameters of neural networks that were never trained, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:  # what `__getattr__` gives, for type checkers
    from ghn_jax import data as data
    from ghn_jax import evaluation as evaluation
    from ghn_jax import finetune as finetune
    from ghn_jax import graphs as graphs
    from ghn_jax import models as models
    from ghn_jax import sampling as sampling
    from ghn_jax import tasks as tasks
    from ghn_jax import tracing as tracing
    from ghn_jax.architectures import VIT as VIT
    from ghn_jax.architectures import Architecture as Architecture
    from ghn_jax.architectures import Genotype as Genotype
    from ghn_jax.architectures import ResNet as ResNet
    from ghn_jax.data import load_dataset as load_dataset
    from ghn_jax.data import register_dataset as register_dataset
    from ghn_jax.drawing import draw as draw
    from ghn_jax.hypernetworks import Decoder as Decoder
    from ghn_jax.hypernetworks import GHNConfig as GHNConfig
    from ghn_jax.hypernetworks import Hypernetwork as Hypernetwork
    from ghn_jax.hypernetworks import ghn1 as ghn1
    from ghn_jax.hypernetworks import ghn2 as ghn2
    from ghn_jax.hypernetworks import mlp as mlp
    from ghn_jax.hypernetworks import predict_parameters as predict_parameters
    from ghn_jax.hypernetworks import register_decoder as register_decoder
    from ghn_jax.hypernetworks import register_message_passing as register_message_passing
    from ghn_jax.prediction import Prediction as Prediction
    from ghn_jax.pretrained import GHN as GHN
    from ghn_jax.pretrained import load as load
    from ghn_jax.sampling import SpaceConfig as SpaceConfig
    from ghn_jax.sampling import sample_architecture as sample_architecture
    from ghn_jax.tasks import register_task as register_task
    from ghn_jax.tracing import calibrate_batch_stats as calibrate_batch_stats
    from ghn_jax.tracing import register_rule as register_rule
    from ghn_jax.tracing import trace as trace
    from ghn_jax.training.config import ExperimentConfig as ExperimentConfig
    from ghn_jax.training.loop import train as train

# Imported on first use: `import ghn_jax` alone should not take seconds.
_EXPORTS = {
    "Architecture": "ghn_jax.architectures",
    "Decoder": "ghn_jax.hypernetworks",
    "ExperimentConfig": "ghn_jax.training.config",
    "GHN": "ghn_jax.pretrained",
    "GHNConfig": "ghn_jax.hypernetworks",
    "Genotype": "ghn_jax.architectures",
    "Hypernetwork": "ghn_jax.hypernetworks",
    "Prediction": "ghn_jax.prediction",
    "ResNet": "ghn_jax.architectures",
    "SpaceConfig": "ghn_jax.sampling",
    "VIT": "ghn_jax.architectures",
    "calibrate_batch_stats": "ghn_jax.tracing",
    "draw": "ghn_jax.drawing",
    "ghn1": "ghn_jax.hypernetworks",
    "ghn2": "ghn_jax.hypernetworks",
    "load": "ghn_jax.pretrained",
    "load_dataset": "ghn_jax.data",
    "mlp": "ghn_jax.hypernetworks",
    "predict_parameters": "ghn_jax.hypernetworks",
    "register_dataset": "ghn_jax.data",
    "register_decoder": "ghn_jax.hypernetworks",
    "register_message_passing": "ghn_jax.hypernetworks",
    "register_rule": "ghn_jax.tracing",
    "register_task": "ghn_jax.tasks",
    "sample_architecture": "ghn_jax.sampling",
    "trace": "ghn_jax.tracing",
    "train": "ghn_jax.training.loop",
}

_MODULES = ("data", "evaluation", "finetune", "graphs", "models", "sampling", "tasks", "tracing")

__all__ = ["__version__", *_EXPORTS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ghn_jax.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ghn_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
