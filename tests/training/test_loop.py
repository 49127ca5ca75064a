"""The training loop: steps against a plain composition, skipping, exact resuming, compilations."""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from plain_composition import compose, jit, network_loss, one_cell
from small_run import SECTIONS

from ghn_jax.data import load_dataset
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.parallel.replica import Work
from ghn_jax.programs.cache import ProgramCache
from ghn_jax.sampling import ArchitectureStream
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import lower
from ghn_jax.training.checkpoint_files import CheckpointError
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.loop import train
from ghn_jax.training.meta_batches import MetaBatch
from ghn_jax.training.skipping import TooManySkippedError
from ghn_jax.training.trainer import Programs, Trainer

FIELDS = {
    **SECTIONS,
    "optimizer": {"learning_rate": 0.01},
    "training": {
        **{"num_steps": 6, "meta_batch_size": 2, "log_every": 1, "checkpoint_every": 2},
        "num_devices": 1,
    },
}
# Plain gradient descent: what a step subtracts is the gradient. Without message passing, the plain
# composition compiles in half the time; test_prediction.py has it with.
DESCENT = {
    "ghn": {"message_passing": "mlp"},
    "optimizer": {
        **{"name": "sgd", "learning_rate": 1.0},
        **{"momentum": 0.0, "weight_decay": 0.0, "clip_norm": None},
    },
    "training": {"target_dropout": False},
}


def make_config(**changes):
    """The config of this file with changed fields: `make_config(training={"num_steps": 1})`."""
    sections = {name: {**FIELDS.get(name, {}), **changes.get(name, {})} for name in FIELDS}
    return ExperimentConfig.from_dict(sections)


@functools.cache
def dataset():
    return load_dataset("digits")


@functools.cache
def shared_programs(ghn_config):
    return Programs(ProgramCache(), shared_target_programs())


@functools.cache
def shared_target_programs():
    return ProgramCache()


def make_trainer(config):
    """A trainer with the programs of earlier ones: most time goes into compiling."""
    return Trainer(config, dataset=dataset(), programs=shared_programs(config.ghn))


@functools.cache
def initial_state():
    """Before the first step of gradient descent."""
    return make_trainer(make_config(**DESCENT)).init_state()


@pytest.fixture
def descent_step():
    """Return (losses, finite, what the step subtracted) of one step on two small architectures."""
    trainer, state = make_trainer(make_config(**DESCENT)), initial_state()

    def step():
        graphs = tuple(build_graph(plan) for plan in SMALL_PLANS)
        meta_batch = MetaBatch((4, 7), (Work((0, 1), SMALL_PLANS, graphs, 2),), 8)
        new, result = trainer.step(state, meta_batch, trainer.batches.batch(0))
        assert (new.step, new.next_architecture) == (1, 8)
        subtracted = jax.tree.map(lambda a, b: np.asarray(a - b), state.ghn_params, new.ghn_params)
        return result.losses, result.finite.tolist(), subtracted

    return step


SMALL_PLANS = (one_cell("conv_1x1", "skip_connect"), one_cell("avg_pool_3x3", "conv_1x1"))


@functools.cache
def plain_loss_and_grads(position):
    """Loss and gradient of one of the two small architectures on the first batch."""
    config = make_config(**DESCENT)
    images, labels = make_trainer(config).batches.batch(0)
    plan = SMALL_PLANS[position]

    def loss_fn(params):
        return network_loss(plan, compose(config.ghn, params, build_graph(plan)), images, labels)

    return jit(jax.value_and_grad(loss_fn))(initial_state().ghn_params)


def assert_close_trees(actual, expected):
    def check(path, one, other):
        # float32: gradients of order 1e-2 agree to 1e-5 of the largest.
        assert np.abs(one - other).max() <= 1e-4 * np.abs(other).max(), jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(check, actual, expected)


def test_step_is_the_mean_over_architectures(descent_step):
    losses, finite, subtracted = descent_step()
    assert finite == [True, True]
    plain = [plain_loss_and_grads(position) for position in (0, 1)]
    np.testing.assert_allclose(losses, [loss for loss, _ in plain], rtol=1e-5)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, plain[0][1], plain[1][1])
    assert_close_trees(subtracted, mean)


def spoil_predictions(monkeypatch, is_spoilt):
    """Predict NaN for the architectures that `is_spoilt` picks, counted from the first of all."""
    predict, counter = Predictor.predict_with_pull_back, itertools.count()

    def predict_spoilt(self, ghn_params, prepared):
        target_params, pull_back = predict(self, ghn_params, prepared)
        for arrays in target_params:
            if is_spoilt(next(counter)):
                arrays[0] = np.full_like(arrays[0], np.nan)
        return target_params, pull_back

    monkeypatch.setattr(Predictor, "predict_with_pull_back", predict_spoilt)


def test_an_architecture_that_is_not_finite_takes_no_part(descent_step, monkeypatch):
    spoil_predictions(monkeypatch, lambda index: index == 0)
    losses, finite, subtracted = descent_step()
    assert finite == [False, True] and np.isnan(losses[0])
    assert_close_trees(subtracted, plain_loss_and_grads(1)[1])


def test_a_gradient_that_is_not_finite_takes_no_part(descent_step, monkeypatch):
    loss_and_grads = BlockwiseEngine.loss_and_grads

    def overflow(self, *arguments):
        results = loss_and_grads(self, *arguments)
        results[1].grads[3] = np.full_like(results[1].grads[3], np.inf)
        return results

    monkeypatch.setattr(BlockwiseEngine, "loss_and_grads", overflow)
    losses, finite, subtracted = descent_step()
    assert finite == [True, False] and np.isfinite(losses).all()
    assert_close_trees(subtracted, plain_loss_and_grads(0)[1])


def test_without_any_finite_architecture_nothing_changes(descent_step, monkeypatch):
    spoil_predictions(monkeypatch, lambda index: True)
    _, finite, subtracted = descent_step()
    assert finite == [False, False]
    assert not any(leaf.any() for leaf in jax.tree.leaves(subtracted))


def test_an_update_that_is_not_finite_is_discarded(descent_step, monkeypatch):
    pull_back = Predictor._pull_back

    def overflow(self, *arguments):
        return jax.tree.map(lambda x: x * np.float32(np.inf), pull_back(self, *arguments))

    monkeypatch.setattr(Predictor, "_pull_back", overflow)
    _, finite, subtracted = descent_step()
    assert finite == [False, False]
    assert not any(leaf.any() for leaf in jax.tree.leaves(subtracted))


def read_metrics(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def assert_same_end(one, other):
    """Two runs, pairs of state and folder, made the same steps."""
    (state, workdir), (expected, expected_workdir) = one, other
    assert_same_bits(state.ghn_params, expected.ghn_params)
    assert_same_bits(state.opt_state, expected.opt_state)
    assert_same_bits(jax.random.key_data(state.key), jax.random.key_data(expected.key))
    assert (state.step, state.next_architecture) == (expected.step, expected.next_architecture)
    rows, expected_rows = (
        [
            (row["step"], row["loss"], row["skipped"])
            for row in read_metrics(folder)
            if "loss" in row
        ]
        for folder in (workdir, expected_workdir)
    )
    assert rows == expected_rows


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run of six steps without interruption, with its compiled programs on disk."""
    workdir = tmp_path_factory.mktemp("whole")
    config = make_config(training={"compilation_cache_dir": str(workdir / "cache")})
    trainer, state = train(config, workdir, trainer=make_trainer(config))
    yield trainer, state, workdir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def test_a_run_writes_its_metrics(whole_run):
    trainer, state, workdir = whole_run
    assert (state.step, state.next_architecture) == (6, 12)
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["compilations"] == trainer.num_compilations
    # Ten classes: an untrained network's loss is about ln 10.
    assert abs(rows[0]["loss"] - np.log(10)) < 1
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4", "6"]


KILLED = """
import json, sys, time
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.loop import train

def wait_for_the_end(trainer, state):
    print("reached", state.step, flush=True)
    time.sleep(600)

config = ExperimentConfig.from_dict(json.loads(sys.argv[1]))
train(config, sys.argv[2], evaluate_fn=wait_for_the_end)
"""


def test_killed_and_resumed_is_the_same_bit_for_bit(whole_run, tmp_path):
    trainer, expected, expected_workdir = whole_run
    config = trainer.config.to_dict()
    config["training"]["evaluate_every"] = 5
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, json.dumps(config), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert any(line == "reached 5\n" for line in process.stdout)
    finally:
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        process.wait()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    _, state = train(trainer.config, tmp_path, trainer=trainer)
    assert_same_end((state, tmp_path), (expected, expected_workdir))


def test_stopped_at_a_checkpoint_and_extended_is_the_same(whole_run, tmp_path):
    trainer, expected, expected_workdir = whole_run
    short = dataclasses.replace(
        trainer.config, training=dataclasses.replace(trainer.config.training, num_steps=3)
    )
    train(short, tmp_path, trainer=make_trainer(short))
    _, state = train(trainer.config, tmp_path, trainer=trainer)
    assert_same_end((state, tmp_path), (expected, expected_workdir))
    # A finished run has nothing left to do.
    _, again = train(trainer.config, tmp_path, trainer=trainer)
    assert_same_bits(again.ghn_params, expected.ghn_params)


def test_a_second_epoch_compiles_nothing(whole_run, tmp_path):
    trainer, _, _ = whole_run
    before = trainer.num_compilations
    train(trainer.config, tmp_path, trainer=trainer)
    assert trainer.num_compilations == before


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("data", "batch_size", 16),
        ("space", "widths", (16,)),
        ("ghn", "hidden_size", 16),
        ("optimizer", "learning_rate", 0.02),
        ("training", "seed", 3),
    ],
)
def test_a_config_other_than_the_runs_is_refused(whole_run, section, name, value):
    workdir = whole_run[2]
    config = make_config(**{section: {name: value}})
    saved = getattr(getattr(make_config(), section), name)
    saved, value = (list(v) if isinstance(v, tuple) else v for v in (saved, value))
    with pytest.raises(CheckpointError) as caught:
        train(config, workdir, dataset=dataset())
    assert str(caught.value) == (
        f"{workdir}/checkpoints holds a run with {section}.{name} = {saved!r}, but the config says"
        f" {value!r}: use another --workdir, or the run's config"
    )


def test_skipped_architectures_are_counted_and_named(whole_run, tmp_path, monkeypatch, caplog):
    trainer, _, expected_workdir = whole_run
    spoil_predictions(monkeypatch, lambda index: index == 3)  # the second one of step 2
    train(trainer.config, tmp_path, trainer=trainer)
    assert [row["skipped"] for row in read_metrics(tmp_path)] == [0, 1, 1, 1, 1, 1]
    assert all(np.isfinite(row["loss"]) for row in read_metrics(tmp_path))
    assert read_metrics(tmp_path)[0]["loss"] == read_metrics(expected_workdir)[0]["loss"]
    messages = [r.getMessage() for r in caplog.records if r.name == "ghn_jax.training.skipping"]
    assert messages == [
        "step 2: the loss of the architecture with index 3, seed 0 is not finite; it is skipped"
    ]


def test_too_many_skipped_architectures_stop_the_run(whole_run, tmp_path, monkeypatch):
    training = dataclasses.replace(
        whole_run[0].config.training, max_skipped_share=0.25, skip_window=4
    )
    config = dataclasses.replace(whole_run[0].config, training=training)
    spoil_predictions(monkeypatch, lambda index: index >= 4)
    # The window has 8 architectures, of which 2 may be skipped; step 3 skips 2, step 4 another 2.
    with pytest.raises(TooManySkippedError, match="^4 of the 8 .* last 4 steps .*step 4: index 7"):
        train(config, tmp_path, trainer=make_trainer(config))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert not (tmp_path / "checkpoints" / "4").exists()


def test_a_dataset_that_does_not_fit_is_refused():
    config = make_config(space={"image_size": 16})
    with pytest.raises(
        ValueError, match="^space.image_size is 16, expected 8 for the data set 'di"
    ):
        Trainer(config, dataset=dataset())


def test_compilations_level_off(counts_programs):
    """How many programs architectures need, without compiling them."""
    engine = BlockwiseEngine()
    stream = ArchitectureStream(make_config().space, seed=0)
    counts, signatures = [], set()
    for index in range(200):
        plan = lower(stream[index], 8, 10)
        engine.compile_ahead([plan], batch_size=8)
        counts.append(engine.num_compilations)
        shapes = [(8, 8, 3), *(call.output_shape for call in plan.calls)]
        for call in plan.calls:
            signatures.add((call.block, tuple(shapes[place] for place in call.inputs)))
        # One for each block at each shape, the backward program, which the forward one is made for.
        assert counts[-1] == len(signatures)
    # Sides and widths are few: later architectures bring nothing new.
    assert counts[99] == counts[-1] and counts[19] > 0.9 * counts[-1]
    engine.compile_ahead([lower(stream[index], 8, 10) for index in range(200)], batch_size=8)
    assert engine.num_compilations == counts[-1]
