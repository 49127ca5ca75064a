"""Parts of a run handed in from Python: a step against a plain composition, what is refused."""

import dataclasses
import functools
import json
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plain_composition import compose, jit
from small_run import SECTIONS

import ghn_jax
from ghn_jax.architectures import Architecture, Genotype
from ghn_jax.data import ArraySplit, dataset_from_arrays, load_dataset
from ghn_jax.hypernetworks.message_passing import NodeMLP
from ghn_jax.programs.cache import ProgramCache
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.network import TargetNetwork, params_tree
from ghn_jax.targets.plan import lower
from ghn_jax.tasks import Classification, norm_penalty
from ghn_jax.training.checkpoint_files import CheckpointError
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.loop import train
from ghn_jax.training.trainer import Programs, Trainer

WEIGHT = 0.01  # of the norm penalty


@dataclasses.dataclass(frozen=True)
class Squares:
    """Two numbers of an image, as close as possible."""

    input_shape: tuple[int, ...] = (8, 8, 1)
    num_outputs: int = 2

    input_dtype: ClassVar = "float32"
    metric_labels: ClassVar = {"error": "error"}
    lower_is_better: ClassVar = True

    def loss_fn(self, outputs, batch):
        return jnp.mean((outputs - batch.labels) ** 2)

    def metrics_fn(self, outputs, batch):
        return {"error": np.abs(outputs - batch.labels).mean(1)}


@dataclasses.dataclass(frozen=True)
class Listed:
    """Two architectures, in turns."""

    def draw(self, index):
        first = ("conv_1x1", "avg_pool_3x3")[index % 2]
        pairs = ((first, 0), ("skip_connect", 1))
        small = {"num_cells": 1, "channels": 16, "preprocess": False, "channel_multiplier": 1}
        return Architecture(Genotype(pairs, (2,), pairs, (2,)), **small)

    def lower(self, architecture):
        return lower(architecture, 8, 2, 1)

    def graph(self, index, plan):
        return build_graph(plan, 50)


def make_config(**training):
    """A run of two outputs on grey images."""
    sections = {
        "data": {**SECTIONS["data"], "num_channels": 1},
        "space": {**SECTIONS["space"], "num_channels": 1, "num_classes": 2},
        "ghn": {**SECTIONS["ghn"], "num_classes": 2, "message_passing": "mlp"},
        "training": {
            **{"num_steps": 1, "meta_batch_size": 2, "num_devices": 1, "target_dropout": False},
            **{"checkpoint_every": 2, "log_every": 1, **training},
        },
    }
    return ExperimentConfig.from_dict(sections)


@functools.cache
def dataset():
    """Digits, and the means of their upper and lower halves."""
    digits = load_dataset("digits", num_channels=1)

    def measure(split):
        halves = split.images.reshape(-1, 2, 32).mean(2)
        return ArraySplit(split.images, halves.astype(np.float32))

    splits = {name: measure(digits.split(name)) for name in ("train", "validation", "test")}
    return dataset_from_arrays("halves", splits)


@functools.cache
def programs():
    return Programs(ProgramCache(), ProgramCache())


def parts(**changes):
    given = {
        "dataset": dataset(),
        "task": Squares(),
        "optimizer": optax.sgd(1.0),
        "source": Listed(),
        "programs": programs(),
    }
    return {**given, **changes}


@functools.cache
def plain_step():
    """Loss and gradient of the mean over the two architectures, with the penalty, written out."""
    config = make_config()
    trainer = Trainer(config, **parts())
    images, labels = trainer.batches.batch(0)
    plans = [Listed().lower(Listed().draw(index)) for index in (0, 1)]

    def loss_fn(params):
        total = 0.0
        for plan in plans:
            arrays = compose(config.ghn, params, build_graph(plan, 50))
            outputs = TargetNetwork(plan).apply({"params": params_tree(plan, arrays)}, images)
            norms = [jnp.sqrt(jnp.sum(array**2)) for array in arrays]
            total = total + jnp.mean((outputs - labels) ** 2) + WEIGHT * sum(norms)
        return total / 2

    return jit(jax.value_and_grad(loss_fn))(trainer.init_state().ghn_params)


@pytest.mark.parametrize("where", ["handed in", "config"])
def test_a_step_on_parts_is_the_gradient_of_the_plain_composition(where, tmp_path):
    if where == "config":
        given, config = parts(), make_config(norm_penalty=WEIGHT)
    else:
        # Message passing of the class that the config names, but as a module of one's own.
        given, config = parts(parameter_terms=[norm_penalty(WEIGHT)]), make_config()
    before = Trainer(config, **given).init_state()
    trainer, after = train(config, tmp_path, **given)
    assert trainer.task == Squares() and trainer.dataset is dataset()
    loss, gradient = plain_step()
    subtracted = jax.tree.map(lambda a, b: np.asarray(a - b), before.ghn_params, after.ghn_params)

    def check(path, one, other):
        # float32: as in test_loop.py.
        assert np.abs(one - other).max() <= 1e-4 * np.abs(other).max(), jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(check, subtracted, gradient)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    np.testing.assert_allclose(json.loads(line)["loss"], loss, rtol=1e-5)


def test_the_penalty_of_a_config_is_the_term_handed_in(tmp_path):
    configs = make_config(norm_penalty=WEIGHT, num_steps=2), make_config(num_steps=2)
    terms = [[], [norm_penalty(WEIGHT)]]
    states = [
        train(config, tmp_path / str(len(term)), **parts(parameter_terms=term))[1]
        for config, term in zip(configs, terms, strict=True)
    ]
    assert_same_bits(states[0], states[1])


def assert_same_bits(one, other):
    for a, b in zip(
        *(jax.tree.leaves((s.ghn_params, s.opt_state)) for s in (one, other)), strict=True
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_run_with_the_penalty_resumes_bit_for_bit(tmp_path):
    whole, short = make_config(norm_penalty=WEIGHT, num_steps=4), make_config(norm_penalty=WEIGHT)
    momentum = optax.sgd(0.1, momentum=0.9)  # with a state
    _, expected = train(whole, tmp_path / "whole", **parts(optimizer=momentum))
    train(short, tmp_path / "parts", **parts(optimizer=momentum))
    _, state = train(whole, tmp_path / "parts", **parts(optimizer=momentum))
    assert state.step == expected.step == 4
    assert any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(state.opt_state))
    assert_same_bits(state, expected)
    other = make_config(norm_penalty=2 * WEIGHT, num_steps=4)
    with pytest.raises(CheckpointError, match=r"with training\.norm_penalty = 0\.01, but the con"):
        train(other, tmp_path / "parts", **parts(optimizer=momentum))


def test_a_model_is_trained_and_loaded_with_its_module(tmp_path):
    class Shifted(nn.Module):
        @nn.compact
        def __call__(self, nodes, batch):
            return nodes + self.param("shift", nn.initializers.ones, nodes.shape[-1:])[None, None]

    config = make_config()
    model = ghn_jax.Hypernetwork(config.ghn, message_passing=Shifted())
    trainer, state = train(config, tmp_path, **parts(model=model, programs=None))
    shift = np.asarray(state.ghn_params["message_passing"]["shift"])
    assert trainer.model == model and np.any(shift != 1)
    ghn = ghn_jax.load(tmp_path, model=model)
    np.testing.assert_array_equal(ghn.ghn_params["message_passing"]["shift"], shift)
    prediction = ghn.predict(Listed().draw(0))
    outputs = prediction.network.apply(prediction.variables, np.zeros((3, 8, 8, 1), np.float32))
    assert outputs.shape == (3, 2)
    other = ghn_jax.Hypernetwork(ghn_jax.mlp(), message_passing=NodeMLP())
    with pytest.raises(ValueError, match="^model is one of GHNConfig"):
        Trainer(config, **parts(model=other))


def test_what_is_no_part_is_refused_with_a_near_match(tmp_path):
    expected = r"^Trainer has the unknown key 'optimiser' \(did you mean 'optimizer'\?\), expected"
    with pytest.raises(ValueError, match=expected):
        Trainer(make_config(), optimiser=optax.sgd(1.0))
    with pytest.raises(ValueError, match=expected):
        ghn_jax.train(make_config(), tmp_path, optimiser=optax.sgd(1.0))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (
            Squares((8, 8, 3)),
            r"^task\.input_shape is \(8, 8, 3\), expected \(8, 8, 1\) for the data set 'halves'$",
        ),
        (
            Squares(num_outputs=3),
            r"^task\.num_outputs is 3, expected 2, the width of the networks' output",
        ),
        (Classification((16, 16, 1), 2), r"^task\.input_shape is \(16, 16, 1\), expected \(8, 8,"),
    ],
    ids=["channels", "outputs", "size"],
)
def test_a_task_that_does_not_fit_is_refused(task, expected):
    with pytest.raises(ValueError, match=expected):
        Trainer(make_config(), **parts(task=task))


def test_a_task_for_other_inputs_than_images_is_refused():
    class Tokens(Squares):
        input_dtype: ClassVar = "int32"

    with pytest.raises(ValueError, match=r"^task\.input_dtype is 'int32', expected 'float32'"):
        Trainer(make_config(), **parts(task=Tokens()))


def test_classes_have_to_be_those_of_the_space():
    digits = load_dataset("digits", num_channels=1)
    with pytest.raises(ValueError, match=r"^space\.num_classes is 2, expected 10 for the data set"):
        Trainer(make_config(), **parts(dataset=digits))


def test_smoothing_is_refused_for_a_task_that_has_none(monkeypatch):
    monkeypatch.setattr(ghn_jax.tasks.TASKS, "_modules", dict(ghn_jax.tasks.TASKS._modules))
    ghn_jax.register_task("squares")(Squares)
    config = make_config(label_smoothing=0.1)
    config = dataclasses.replace(config, task=Squares.Config())
    expected = r"^training\.label_smoothing is 0\.1, expected 0 for the task 'squares', which has"
    with pytest.raises(ValueError, match=expected):
        Trainer(config, dataset=dataset())
