"""Every reader of files: how a small valid file of its kind is made, and how it is read.

`READERS` is the table. A new reader of files gets a line here; `test_hostile_files.py` does the
rest.
"""

import functools
import gzip
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from reference_predictions import LOCAL
from small_run import SECTIONS

import ghn_jax
from ghn_jax.architectures import ResNet
from ghn_jax.cli.config_dict import build_config
from ghn_jax.cli.config_flags import load_config_file
from ghn_jax.data import load_dataset
from ghn_jax.deepnets1m.reader import DeepNets1M
from ghn_jax.deepnets1m.writer import merge_evaluation_splits
from ghn_jax.evaluation.architecture_specs import resolve_architecture
from ghn_jax.evaluation.evaluate import ArchitectureResult, ArchitectureSplit, summarize
from ghn_jax.evaluation.image_files import read_images, read_labelled_images
from ghn_jax.evaluation.journal import EvaluationJournal
from ghn_jax.finetune.comparison import read_result
from ghn_jax.finetune.comparison_report import (
    Row,
    RunResult,
    markdown_table,
    read_comparison,
    write_comparison,
)
from ghn_jax.interop.checkpoint_conversion import convert_to_torch, write_run
from ghn_jax.interop.reference import Reference
from ghn_jax.interop.target_files import load_target_params, save_target_params
from ghn_jax.interop.torch_files import read_torch_file
from ghn_jax.interop.torch_writer import write_torch_file
from ghn_jax.sampling import sample_architecture
from ghn_jax.targets.plan import lower
from ghn_jax.training.checkpoints import CheckpointStore
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.loop import GHNTraining
from ghn_jax.training.metrics import MetricWriter
from ghn_jax.training.trainer import Trainer

CONFIG = ExperimentConfig.from_dict(
    {
        **SECTIONS,
        "ghn": {**SECTIONS["ghn"], "message_passing": "mlp"},  # which is traced in no time
        "training": {"num_steps": 4, "num_devices": 1},
    }
)
IMAGE_SIZE, NUM_CLASSES = 8, 10


class Reader(NamedTuple):
    """A reader of files.

    Attributes:
        name: what is read.
        make: writes valid files into an empty folder and returns the path to read from: a file, or
            the folder.
        read: reads from the path, and uses what it finds as its callers do.
        named: part of the texts of its errors; None is the path.
        damaged: pattern of the names of the files to damage.
        count: damages of a quick test.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    named: str | None = None
    damaged: str = "*"
    count: int = 25


READERS: list[Reader] = []


def _reader(name, make, **fields):
    """Add what the decorated function reads to the table."""

    def add(read):
        READERS.append(Reader(name, make, read, **fields))
        return read

    return add


def _random(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


@functools.cache
def _plan():
    """A network of few bytes: most of a file is what decides how it is read."""
    return lower(sample_architecture(CONFIG.space, 0, 0), IMAGE_SIZE, NUM_CLASSES)


# --- PyTorch's files and predicted parameters


def _official(folder):
    """The smallest official checkpoint: the archive of a trained one is 200 KB of floats."""
    return shutil.copy(LOCAL / "mlp.pt", folder)


def _tensors(folder):
    path = folder / "tensors.pt"
    contents = {"state_dict": {f"layer{i}": _random(3, 4) for i in range(5)}, "epoch": 3}
    write_torch_file(path, contents)
    return path


@_reader("an official checkpoint", _official)
def _read_official(path):
    return ghn_jax.load(path)


@_reader("a file of torch.save", _tensors)
def _read_tensors(path):
    return read_torch_file(path)


def _predicted(folder, suffix):
    path = folder / f"predicted{suffix}"
    plan = _plan()
    save_target_params(path, plan, [_random(*tensor.shape) for tensor in plan.tensors])
    return path


@_reader("predicted parameters, npz", lambda folder: _predicted(folder, ".npz"))
def _read_predicted(path):
    return load_target_params(path, _plan())


@_reader("predicted parameters, safetensors", lambda folder: _predicted(folder, ".safetensors"))
def _read_safetensors(path):
    return load_target_params(path, _plan())


# --- Images


def _own_images(folder):
    path = folder / "own.npz"
    arrays = {"images": np.zeros((20, 4, 4, 3), np.uint8), "labels": np.arange(20) % 4}
    statistics = {"mean": np.full(3, 0.5), "std": np.full(3, 0.5), "num_classes": np.int64(4)}
    np.savez(path, **arrays, **statistics)
    return path


@_reader("a data set of one's own", _own_images)
def _read_own_images(path):
    dataset = load_dataset(f"npz:{path}")
    return dataset.eval_transform(dataset.test.images[:1])


def _splits_of_images(folder):
    path = folder / "compressed.npz"
    images = {f"{split}_images": _random(12, 4, 4, 1) for split in ("train", "test", "validation")}
    labels = {name.replace("images", "labels"): np.arange(12, dtype=np.uint8) for name in images}
    np.savez_compressed(path, **images, **labels)
    return path


@_reader("a compressed data set of one's own", _splits_of_images)
def _read_splits_of_images(path):
    return load_dataset(f"npz:{path}")


def _idx(folder, suffix=""):
    for prefix, count in (("train", 20), ("t10k", 10)):
        for kind, shape in (("images-idx3", (count, 4, 4)), ("labels-idx1", (count,))):
            header = struct.pack(f">BBBB{len(shape)}i", 0, 0, 8, len(shape), *shape)
            content = header + (np.arange(np.prod(shape)) % 4).astype(np.uint8).tobytes()
            path = folder / f"{prefix}-{kind}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
    return folder


@_reader("MNIST's files", _idx)
def _read_idx(path):
    return load_dataset(f"idx:{path}")


@_reader("MNIST's files, compressed", lambda folder: _idx(folder, ".gz"))
def _read_compressed_idx(path):
    return load_dataset(f"idx:{path}")


def _images(folder):
    np.save(folder / "images.npy", _random(2, 4, 4, 3))
    return folder / "images.npy"


@_reader("images to classify", _images)
def _read_images(path):
    return read_images(path)


def _labelled_images(folder):
    path = folder / "labelled.npz"
    np.savez(path, images=_random(4, 8, 8, 3), labels=np.arange(4))
    return path


@_reader("images to evaluate on", _labelled_images)
def _read_labelled_images(path):
    return read_labelled_images(path, IMAGE_SIZE, NUM_CLASSES)


# --- Architectures


def _deepnets(folder, split):
    for path in LOCAL.glob(f"deepnets1m_{split}*"):
        shutil.copy(path, folder)
    return folder


@_reader("networks to evaluate", lambda folder: _deepnets(folder, "eval"))
def _read_deepnets(path):
    nets = DeepNets1M(path, "val")
    return [nets.graph(index, NUM_CLASSES) for index in range(len(nets))[-1:]]


@_reader("networks to train on", lambda folder: _deepnets(folder, "train"))
def _read_training_deepnets(path):
    nets = DeepNets1M(path, "train")
    return [nets.graph(index, NUM_CLASSES) for index in range(len(nets))[-1:]]


@_reader("a network as SPLIT/INDEX", lambda folder: _deepnets(folder, "eval"))
def _read_stored_network(path):
    return resolve_architecture("val/2", 32, NUM_CLASSES, 5, path)


def _splits_to_merge(folder):
    for path in LOCAL.glob("deepnets1m_eval*"):
        shutil.copy(path, folder / path.name.replace("eval", "val"))
    return folder


@_reader("splits to merge", _splits_to_merge)
def _merge(path):
    merged = merge_evaluation_splits(path)
    return DeepNets1M(merged.parent, "val")


def _spec(folder):
    path = folder / "spec"
    path.write_text("hostile_readers:make_network")
    return path


def make_network():
    """What the SPEC in `_spec` names."""
    return ResNet((1, 1, 1, 1))


@_reader("an architecture on the command line", _spec, named="architecture")
def _read_spec(path):
    spec = path.read_bytes().decode("latin-1")
    return resolve_architecture(spec, 32, NUM_CLASSES, 5, path.parent)


# --- Checkpoints and what else lies in a run's folder


@functools.cache
def _trainer():
    return Trainer(CONFIG)


def _run(folder):
    ghn_params = jax.tree.map(np.asarray, _trainer().init_state().ghn_params)
    write_run(folder / "run", CONFIG, ghn_params)
    return folder / "run"


@_reader("a trained GHN", _run, count=10)
def _read_run(path):
    return ghn_jax.load(path)


@_reader("a run that goes on", _run, count=10)
@_reader("the config and the counters of a run", _run, damaged="run/metadata", count=15)
def _resume(path):
    with CheckpointStore(path) as store:
        return GHNTraining(_trainer(), None).restore(store)


@_reader("the config of a trained GHN", _run, damaged="run/metadata", count=15)
def _read_run_config(path):
    return ghn_jax.load(path)


@_reader("a GHN to convert", _run, count=5)
def _convert(path):
    return convert_to_torch(path, path.parent / "converted.pt")


def _metrics(folder):
    with MetricWriter(folder) as writer:
        for step in range(1, 6):
            writer.write(step, {"loss": 1 / step, "seconds/step": 0.5})
            writer.write_skipped(step, index=step, seed=0)
    shutil.rmtree(folder / "tensorboard")
    return folder


@_reader("the metrics of a run that goes on", _metrics)
def _read_metrics(path):
    with MetricWriter(path, resume_step=3) as writer:
        return writer.write(4, {"loss": 0.5})


IDENTITY = {"seed": 1, "space": {"widths": [8]}}


def _journal(folder):
    journal = EvaluationJournal(folder, IDENTITY)
    list(journal.resume(ArchitectureSplit("val", 3, iter(range(3))), _evaluate))
    return folder


def _evaluate(architectures):
    for index in architectures:
        yield ArchitectureResult(index, 5, 7, {"top1": 0.5, "top5": 1.0}, {"top1": 0.1, "top5": 0})


@_reader("the journal of an evaluation", _journal)
def _read_journal(path):
    split = ArchitectureSplit("val", 3, iter(range(3)))
    results = list(EvaluationJournal(path, IDENTITY).resume(split, _evaluate))
    return json.dumps(summarize("val", results).to_dict()), [
        json.dumps(r.to_dict()) for r in results
    ]


def _comparison(folder):
    runs = [RunResult(seed, 0.1, [(0, 0.1), (4, 0.5)], 0.4) for seed in range(2)]
    rows = [Row("resnet50", init, 0.1, runs) for init in ("random", "ghn")]
    write_comparison(folder, rows, {"num_seeds": 2}, "digits")
    for name in ("table.md", "curves.png"):
        (folder / name).unlink()
    return folder


@_reader("the results of a comparison", _comparison)
def _read_comparison(path):
    return markdown_table(read_comparison(path))


RECORD = {"data": {"name": "digits"}, "num_shots": None}


def _run_result(folder):
    result = RunResult(0, 0.1, [(0, 0.1), (4, 0.5)])
    (folder / "result.json").write_text(json.dumps({**result._asdict(), "record": RECORD}))
    return folder


@_reader("the result of a run of a comparison", _run_result)
def _read_run_result(path):
    result = read_result(path / "result.json", RECORD)
    return markdown_table([Row("resnet50", "random", 0.1, [result])])


# --- Configs and the original's numbers


def _config(folder):
    path = folder / "config.py"
    path.write_text(
        '"""A config."""\n\nfrom ghn_jax.cli.config_dict import default_config\n\n\n'
        "def get_config():\n    config = default_config()\n    config.data.name = 'digits'\n"
        "    config.training.num_steps = 40\n    config.space.widths = (16, 32)\n"
        "    config.optimizer.learning_rate = 1e-3\n    return config\n"
    )
    return path


@_reader("a config file", _config, named="config")
def _read_config(path):
    config = load_config_file(str(path))
    assert isinstance(config, ConfigDict)
    return build_config(config)


def _reference(folder):
    names = ("index.json", "mlp.pt", "predict_val_2_mlp.npz", "images.npz", "orthogonalize.npz")
    for name in (*names, "deepnets1m_eval.hdf5", "deepnets1m_eval_meta.json"):
        shutil.copy(LOCAL / name, folder)
    index = json.loads((folder / "index.json").read_text())
    kept = [entry for entry in index if entry["name"] == "val_2_mlp"]
    (folder / "index.json").write_text(json.dumps(kept))
    return folder


@_reader("the original's numbers", _reference)
def _read_reference(path):
    reference = Reference(path)
    predictions = [reference.prediction(name) for name in reference.prediction_names()]
    return predictions, reference.orthogonalizations()
