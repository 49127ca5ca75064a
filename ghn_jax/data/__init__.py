"""Images and labels: data sets, augmentation, and batches that depend on (seed, step) only."""

from ghn_jax.data.augmentation import (
    CenterCrop,
    CropAndFlip,
    RandomResizedCrop,
    Resize,
    add_gaussian_noise,
    cut_out,
    normalize,
    to_unit_range,
)
from ghn_jax.data.loader import EvaluationBatch, EvaluationBatches, Prefetcher, TrainBatches
from ghn_jax.data.registry import register_dataset
from ghn_jax.data.sources import dataset_from_arrays, load_dataset
from ghn_jax.data.splits import ArraySplit, Dataset, RecordSplit, Split, check_classes, take_shots

__all__ = [
    "ArraySplit",
    "CenterCrop",
    "CropAndFlip",
    "Dataset",
    "EvaluationBatch",
    "EvaluationBatches",
    "Prefetcher",
    "RandomResizedCrop",
    "RecordSplit",
    "Resize",
    "Split",
    "TrainBatches",
    "add_gaussian_noise",
    "check_classes",
    "cut_out",
    "dataset_from_arrays",
    "load_dataset",
    "normalize",
    "register_dataset",
    "take_shots",
    "to_unit_range",
]
