"""The loop of every run, with a training that only notes what it is asked for."""

import concurrent.futures
import contextlib
import itertools
import json
import shutil
import signal
from typing import NamedTuple

import jax
import numpy as np
import pytest

from ghn_jax.training.checkpoint_files import CheckpointError
from ghn_jax.training.checkpoints import CheckpointStore
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.folder_lock import FolderInUseError
from ghn_jax.training.interruption import InterruptedRunError
from ghn_jax.training.run_loop import RunSchedule, check_same_config, run_training

CONFIG = ExperimentConfig()


class Outcome(NamedTuple):
    stop: bool


class Sum:
    """Its state is the sum of the numbers of its steps; `signal_step` is interrupted by SIGTERM."""

    def __init__(self, config=CONFIG, signal_step=None):
        self.config, self.may_change = config, {"evaluation", "training.num_steps"}
        self.calls, self.signal_step = [], signal_step

    def init_state(self):
        self.calls.append("init")
        return np.float32(0)

    def restore(self, store):
        self.calls.append("restore")
        return store.restore(lambda params: {"step": np.int32(0)}).params["sum"]

    def batches(self, state, step):
        return contextlib.nullcontext(itertools.count(step))

    def step(self, state, step, batch, stop):
        assert batch == step
        if step == self.signal_step:
            signal.raise_signal(signal.SIGTERM)
        self.calls.append(f"step {step}")
        return state + np.float32(batch), Outcome(stop)

    def record(self, step, batch, outcome, report):
        assert step == batch + 1
        report.progress.update(step, loss=0.0)

    def log(self, step, report):
        self.calls.append(f"log {step}")
        report.metrics.write(step, {"loss": 0.0})

    def evaluate(self, state, step):
        self.calls.append(f"evaluate {step}")
        return {"sum": state}

    def save(self, store, state, step):
        self.calls.append(f"save {step}")
        store.save(
            step,
            params={"sum": state},
            state={"step": np.int32(step)},
            key=jax.random.key(0),
            counters={},
            config=self.config,
        )


def make_schedule(num_steps=4, **changes):
    fields = {"log_every": 3, "checkpoint_every": 2, "keep_checkpoints": 1}
    fields |= {"evaluate_every": 2, "evaluates_ends": False}
    return RunSchedule(num_steps, **{**fields, **changes})


def test_order_of_a_whole_run(tmp_path):
    training = Sum()
    assert run_training(training, make_schedule(), tmp_path) == 0 + 1 + 2 + 3
    assert training.calls == [
        *("init", "step 0", "step 1", "evaluate 2", "save 2"),
        *("step 2", "log 3", "step 3", "log 4", "save 4"),
    ]
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    written = [(line["step"], {"loss", "sum"} & set(line)) for line in lines]
    assert written == [(2, {"sum"}), (3, {"loss"}), (4, {"loss"})]


def test_ends_are_evaluated_and_checkpoints_are_for_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = Sum()
    schedule = make_schedule(2, log_every=5, evaluate_every=None, evaluates_ends=True)
    assert run_training(training, schedule, None, quiet=True) == 1
    assert training.calls == ["init", "evaluate 0", "step 0", "step 1", "log 2", "evaluate 2"]
    assert not list(tmp_path.iterdir())


def test_goes_on_from_the_latest_checkpoint(tmp_path):
    run_training(Sum(), make_schedule(), tmp_path)
    longer = Sum()
    schedule = make_schedule(6, evaluates_ends=True)
    assert run_training(longer, schedule, tmp_path) == sum(range(6))
    assert longer.calls[:3] == ["restore", "step 4", "step 5"]
    again = Sum()
    assert run_training(again, schedule, tmp_path) == sum(range(6))
    assert again.calls == ["restore"]  # nothing is left to do


def test_a_signal_saves_and_says_where(tmp_path):
    training = Sum(signal_step=0)
    with pytest.raises(InterruptedRunError) as caught:
        run_training(training, make_schedule(), tmp_path)
    assert str(caught.value) == (
        f"asked to stop: step 2 of 4 is saved in {tmp_path}/checkpoints; the same command goes on"
        " from there"
    )
    # Step 0 was under way when the signal came. Nothing is logged that would not be otherwise.
    assert training.calls == ["init", "step 0", "step 1", "evaluate 2", "save 2"]
    assert run_training(Sum(), make_schedule(), tmp_path) == 0 + 1 + 2 + 3


def test_a_signal_in_the_last_step_is_said_once_it_is_saved(tmp_path):
    message = f"^asked to stop: all 4 steps are made and saved in {tmp_path}; the same command goes"
    with pytest.raises(InterruptedRunError, match=message):
        run_training(Sum(signal_step=3), make_schedule(), tmp_path)
    again = Sum()
    assert run_training(again, make_schedule(), tmp_path) == 0 + 1 + 2 + 3
    assert again.calls == ["restore"]


def test_a_signal_while_the_store_closes_loses_nothing(tmp_path, monkeypatch):
    close = CheckpointStore.close

    def close_interrupted(self):
        signal.raise_signal(signal.SIGTERM)
        close(self)

    monkeypatch.setattr(CheckpointStore, "close", close_interrupted)
    with pytest.raises(InterruptedRunError, match="^asked to stop: all 4 steps are made and saved"):
        run_training(Sum(), make_schedule(), tmp_path)
    monkeypatch.undo()
    assert run_training(again := Sum(), make_schedule(), tmp_path) == 0 + 1 + 2 + 3
    assert again.calls == ["restore"]


class InterruptedAtFirst(Sum):
    def evaluate(self, state, step):
        if step == 0:
            signal.raise_signal(signal.SIGTERM)
        return super().evaluate(state, step)


def test_a_signal_before_the_first_step_keeps_the_first_evaluation(tmp_path):
    schedule = make_schedule(evaluates_ends=True)
    with pytest.raises(InterruptedRunError, match="^asked to stop: step 0 of 4 is saved in "):
        run_training(InterruptedAtFirst(), schedule, tmp_path)
    again = Sum()
    assert run_training(again, schedule, tmp_path) == 0 + 1 + 2 + 3
    assert again.calls[:2] == ["restore", "step 0"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "sum" in row] == [0, 2, 4]


class Removes(Sum):
    """Loses its folder in the middle."""

    def __init__(self, workdir):
        super().__init__()
        self.workdir = workdir

    def step(self, state, step, batch, stop):
        if step == 20:
            while self.workdir.exists():  # a checkpoint may be being written
                shutil.rmtree(self.workdir, ignore_errors=True)
        return super().step(state, step, batch, stop)


@pytest.mark.parametrize(
    ("changes", "num_steps", "error"),
    [
        ({"log_every": 1, "checkpoint_every": None}, 21, FileNotFoundError),
        ({"log_every": 99, "checkpoint_every": 1}, 21, CheckpointError),
    ],
)
def test_a_folder_that_is_removed_ends_the_run(tmp_path, changes, num_steps, error):
    training = Removes(tmp_path / "run")
    schedule = make_schedule(1000, evaluate_every=None, **changes)
    with pytest.raises(error, match=f"^{tmp_path}/run/.* was removed .*during the run"):
        run_training(training, schedule, tmp_path / "run")
    assert sum(call.startswith("step") for call in training.calls) == num_steps


class Starts(Sum):
    """Starts a second run in the same folder in the middle of the first."""

    def __init__(self, workdir):
        super().__init__()
        self.workdir, self.second = workdir, Sum()

    def step(self, state, step, batch, stop):
        if step == 2:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                other = pool.submit(run_training, self.second, make_schedule(), self.workdir)
                self.error = other.exception()
        return super().step(state, step, batch, stop)


def test_a_second_run_in_the_folder_changes_nothing(tmp_path):
    training = Starts(tmp_path)
    assert run_training(training, make_schedule(), tmp_path) == 0 + 1 + 2 + 3
    assert isinstance(training.error, FolderInUseError)
    assert training.second.calls == []
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3, 4]


def test_a_signal_without_a_folder():
    with pytest.raises(InterruptedRunError, match="^asked to stop at step 1 of 9: nothing is sav"):
        run_training(StopsAtOnce(), make_schedule(9), None)


class StopsAtOnce(Sum):
    def step(self, state, step, batch, stop):
        return state, Outcome(True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"seed": 4}}, "training.seed = 0, but the config says 4"),
        (
            {"architectures": "nets"},
            "architectures = None, but the config says 'nets'",
        ),
        ({"training": {"num_steps": 4}, "evaluation": {"seed": 1}}, None),
    ],
)
def test_configs_that_a_run_may_go_on_with(tmp_path, changes, message):
    training = Sum()
    with CheckpointStore(tmp_path) as store:
        training.save(store, np.float32(0), 0)
        store.wait()
        config = ExperimentConfig.from_dict(changes)
        if message is None:
            check_same_config(store, config, training.may_change)
            return
        with pytest.raises(CheckpointError, match=f"^{store.folder} holds a run with {message}"):
            check_same_config(store, config, training.may_change)
