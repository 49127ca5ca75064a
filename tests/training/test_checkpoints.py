"""Checkpoints: bit-exact round trips, interrupted saves, damaged files."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore

from ghn_jax.interop.locations import CHECKPOINTS
from ghn_jax.training.checkpoint_files import CheckpointError
from ghn_jax.training.checkpoints import CheckpointStore, load_checkpoint
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.optimizers import create_optimizer

CONFIG = ExperimentConfig.from_dict(
    {"data": {"name": "digits"}, "space": {"widths": (16,)}, "training": {"num_steps": 40}}
)
OPTIMIZER = create_optimizer(CONFIG.optimizer, num_steps=40)

# Orbax leaves reads of a damaged checkpoint in flight when one of them fails; their threads then
# complain that nobody waits for them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_ghn_params(seed=0):
    """Return values that only an exact copy keeps: NaN, -0, denormals, low precision."""
    generator = np.random.default_rng(seed)
    return {
        "params": {
            "decoder": {"kernel/1x1": jnp.asarray(generator.normal(size=(3, 4)), jnp.float32)},
            "embedding.shape": jnp.asarray(generator.normal(size=(5,)), jnp.bfloat16),
            "odd": jnp.array([jnp.nan, -0.0, 1e-42, jnp.inf], jnp.float32),
            "scalar": jnp.float32(seed),
        }
    }


def save(store, step, seed=0, **changes):
    ghn_params = make_ghn_params(seed)
    values = {
        "params": ghn_params,
        "state": OPTIMIZER.init(ghn_params),
        "key": jax.random.key(7),
        "counters": {"position": step, "skip": {"recent": [[4, []]]}},
        "config": CONFIG,
    }
    store.save(step, **(values | changes))


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.fixture
def workdir(tmp_path):
    """A run with checkpoints of the steps 10 and 20."""
    with CheckpointStore(tmp_path / "run") as store:
        save(store, 10, seed=1)
        save(store, 20, seed=2)
    return tmp_path / "run"


def test_a_state_without_arrays_is_saved(tmp_path):
    """Plain gradient descent has none."""
    descent = optax.sgd(0.1)
    with CheckpointStore(tmp_path) as store:
        save(store, 10, state=descent.init(make_ghn_params()))
        checkpoint = store.restore(descent.init)
        assert_same_bits(checkpoint.params, make_ghn_params())
        assert jax.tree.structure(checkpoint.state) == jax.tree.structure(descent.init({}))
        with pytest.raises(CheckpointError, match="is only in the template; expected the optim"):
            store.restore(OPTIMIZER.init)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_round_trip_is_bit_exact(tmp_path, impl):
    ghn_params = make_ghn_params()
    opt_state = OPTIMIZER.init(ghn_params)
    gradient = jax.tree.map(jnp.ones_like, ghn_params)
    for _ in range(3):
        _, opt_state = OPTIMIZER.update(gradient, opt_state, ghn_params)
    key = jax.random.split(jax.random.key(3, impl=impl))[1]
    counters = {"position": 2**40, "share": 0.1, "recent": [[4, [[1, 2, 3]]]]}
    with CheckpointStore(tmp_path) as store:
        store.save(7, params=ghn_params, state=opt_state, key=key, counters=counters, config=CONFIG)
    with CheckpointStore(tmp_path) as store:
        restored = store.restore(OPTIMIZER.init)
    assert restored.step == 7
    assert_same_bits(restored.params, ghn_params)
    assert_same_bits(restored.state, opt_state)
    assert jax.random.key_impl(restored.key) == jax.random.key_impl(key)
    assert_same_bits(jax.random.normal(restored.key, (3,)), jax.random.normal(key, (3,)))
    assert restored.counters == counters
    assert restored.config == CONFIG


def test_saved_values_are_those_at_the_call(tmp_path):
    ghn_params = {"w": np.zeros(1000, np.float32)}
    opt_state = OPTIMIZER.init(ghn_params)
    with CheckpointStore(tmp_path) as store:
        save(store, 1, params=ghn_params, state=opt_state)
        ghn_params["w"] += 1.0
        restored = store.restore(OPTIMIZER.init)
    assert not restored.params["w"].any()


def test_saves_arrays_on_several_devices(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    ghn_params = jax.device_put(make_ghn_params(), replicated)
    with CheckpointStore(tmp_path) as store:
        save(store, 1, params=ghn_params)
    assert_same_bits(load_checkpoint(tmp_path)[1], ghn_params)


def test_keeps_the_latest(tmp_path):
    with CheckpointStore(tmp_path, keep=2) as store:
        assert store.latest_step() is None
        for step in (1, 5, 9, 12):
            save(store, step)
        store.wait()
        assert store.steps() == (9, 12)
        assert store.latest_step() == 12
        assert store.restore(OPTIMIZER.init, step=9).counters["position"] == 9


def test_load_needs_only_a_path(workdir, tmp_path):
    for path in (workdir, workdir / "checkpoints", workdir / "checkpoints" / "20"):
        config, ghn_params = load_checkpoint(path)
        assert config == CONFIG
        assert_same_bits(ghn_params, make_ghn_params(2))
    shutil.copytree(workdir / "checkpoints" / "10", tmp_path / "released")
    assert_same_bits(load_checkpoint(str(tmp_path / "released"))[1], make_ghn_params(1))


def test_the_layout_on_disk_is_that_of_earlier_versions(tmp_path):
    """Written here without the package, as its first version did."""
    ghn_params = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    opt_state = {"0/mu/w": np.full((2, 3), 0.5, np.float32)}
    items = {"ghn_params": ghn_params, "opt_state": opt_state}
    items["key"] = {"data": np.array([0, 7], np.uint32)}
    checksums = {
        name: {leaf: zlib.crc32(array.tobytes()) for leaf, array in arrays.items()}
        for name, arrays in items.items()
    }
    run = {"format": 1, "step": 3, "key_impl": "threefry2x32", "counters": {"next": 5}}
    run |= {"config": CONFIG.to_dict(), "checksums": checksums}
    arguments = {name: ocp.args.StandardSave(arrays) for name, arrays in items.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            tmp_path / "checkpoints" / "3",
            args=ocp.args.Composite(**arguments, run=ocp.args.JsonSave(run)),
        )
    config, loaded = load_checkpoint(tmp_path)
    assert config == CONFIG
    assert_same_bits(loaded, ghn_params)
    with CheckpointStore(tmp_path) as store:
        assert store.read_config(3) == CONFIG
        restored = store.restore(lambda params: ({"mu": params},))
        save(store, 4)
        store.wait()
    assert_same_bits(restored.params, ghn_params)
    assert_same_bits(restored.state, ({"mu": {"w": opt_state["0/mu/w"]}},))
    assert_same_bits(jax.random.key_data(restored.key), items["key"]["data"])
    assert (restored.step, restored.counters) == (3, {"next": 5})
    # What is written now is read by earlier versions: they look for the same folders.
    old, new = ({x.name for x in tmp_path.glob(f"checkpoints/{n}/*") if x.is_dir()} for n in "34")
    assert old == new == {"ghn_params", "opt_state", "key", "run"}


def test_the_packaged_checkpoint_loads():
    config, ghn_params = load_checkpoint(CHECKPOINTS / "digits")
    assert (config.data.name, config.ghn.hidden_size) == ("digits", 32)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ghn_params))
    assert (CHECKPOINTS / "digits" / "checkpoints" / "0" / "ghn_params").is_dir()


def test_half_written_checkpoint_is_not_picked_up(workdir):
    folder = workdir / "checkpoints"
    leftover = folder / "30.orbax-checkpoint-tmp"
    shutil.copytree(folder / "20", leftover)
    (leftover / "run" / "metadata").unlink()
    assert_same_bits(load_checkpoint(workdir)[1], make_ghn_params(2))
    assert leftover.exists()  # Reading changes nothing: another process may be training.
    with CheckpointStore(workdir) as store:
        assert store.latest_step() == 20
        assert store.restore(OPTIMIZER.init).step == 20
        save(store, 30, seed=3)
        store.wait()
        assert store.steps() == (10, 20, 30)
    assert not leftover.exists()


def damage_arrays(path):
    for file in path.rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)


def damage_manifest(path):
    os.truncate(path / "ghn_params" / "manifest.ocdbt", 10)


def damage_run(path):
    os.truncate(path / "run" / "metadata", 30)


def flip_bit(path):
    file = max((path / "ghn_params").rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def remove_ghn_params(path):
    shutil.rmtree(path / "ghn_params")


def remove_config(path):
    file = path / "run" / "metadata"
    run = json.loads(file.read_text())
    del run["config"]
    file.write_text(json.dumps(run))


@pytest.mark.parametrize(
    "damage",
    [damage_arrays, damage_manifest, damage_run, flip_bit, remove_ghn_params, remove_config],
)
def test_damaged_checkpoint_is_named_along_with_the_others(workdir, damage):
    path = workdir / "checkpoints" / "20"
    damage(path)
    with CheckpointStore(workdir) as store:
        with pytest.raises(CheckpointError) as caught:
            store.restore(OPTIMIZER.init)
        assert store.restore(OPTIMIZER.init, step=10).step == 10
    message = str(caught.value)
    assert message.startswith(f"the checkpoint {path} cannot be read (")
    assert f"; {path.parent} holds the steps 10; delete the damaged one" in message
    if damage != remove_ghn_params:
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_checkpoint(workdir)


def test_changed_array_is_named(tmp_path):
    ghn_params = {"w": np.random.default_rng(0).normal(size=(100, 100)), "b": np.zeros(3)}
    with CheckpointStore(tmp_path) as store:
        save(store, 1, params=ghn_params)
    flip_bit(tmp_path / "checkpoints" / "1")
    with pytest.raises(CheckpointError, match="ghn_params/w does not have the checksum it was"):
        load_checkpoint(tmp_path)


def test_config_of_another_version_is_named(workdir):
    file = workdir / "checkpoints" / "20" / "run" / "metadata"
    run = json.loads(file.read_text())
    run["config"]["training"]["num_epochs"] = 3
    file.write_text(json.dumps(run))
    with pytest.raises(
        CheckpointError,
        match=r"^the config in the checkpoint .*/20 is not valid: config\.training\.num_epochs \(v",
    ):
        load_checkpoint(workdir)


def test_no_truncated_file_changes_values(workdir):
    path = workdir / "checkpoints" / "20"
    for file in [file for file in path.rglob("*") if file.is_file()]:
        content = file.read_bytes()
        os.truncate(file, max(len(content) // 2, 1))
        try:
            assert_same_bits(load_checkpoint(path)[1], make_ghn_params(2))
        except CheckpointError:
            pass
        file.write_bytes(content)
    assert_same_bits(load_checkpoint(path)[1], make_ghn_params(2))


def test_errors_of_missing_checkpoints(workdir, tmp_path):
    with CheckpointStore(workdir) as store:
        with pytest.raises(
            CheckpointError, match=r"holds no checkpoint of step 15; .* holds the steps 10, 20$"
        ):
            store.restore(OPTIMIZER.init, step=15)
        with pytest.raises(ValueError, match="^step is 20, expected more than 20, the latest"):
            save(store, 20)
        with pytest.raises(ValueError, match="^counters is .* expected values that JSON can hold"):
            save(store, 30, counters={"position": np.int32(3)})
    with CheckpointStore(tmp_path / "empty") as store:
        with pytest.raises(CheckpointError, match="empty/checkpoints holds no finished checkpoint"):
            store.restore(OPTIMIZER.init)
    with pytest.raises(CheckpointError, match="no finished checkpoint in"):
        load_checkpoint(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="^path is '.*nowhere', expected the folder of a run"):
        load_checkpoint(tmp_path / "nowhere")


def test_optimizer_state_of_another_run(workdir):
    with CheckpointStore(workdir) as store:
        with pytest.raises(CheckpointError, match=r"2/count is only in the checkpoint"):
            store.restore(optax.sgd(0.1).init)
        ghn_params = make_ghn_params()
        ghn_params["params"]["odd"] = jnp.zeros(5)
        with pytest.raises(
            CheckpointError, match=r"params/odd has shape \(4,\) and dtype float32, expected \(5,\)"
        ):
            store.restore(lambda _: OPTIMIZER.init(ghn_params))


KILLED = """
import sys
import jax, numpy as np
from ghn_jax.training.checkpoints import CheckpointStore
from ghn_jax.training.config import ExperimentConfig
from ghn_jax.training.optimizers import create_optimizer

store = CheckpointStore(sys.argv[1], keep=2)
for step in range(1, 10_000):
    value = np.full(300_000, step, np.float32)
    store.save(step, params={"w": value}, state={"w": value}, key=jax.random.key(step),
               counters={"step": step}, config=ExperimentConfig())
    print(step, flush=True)
"""


def test_killed_while_saving(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=pathlib.Path(__file__).parents[2],
    )
    for line in process.stdout:
        if int(line) == 6:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    step = max(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]") if path.is_dir())
    assert step >= 4
    _, ghn_params = load_checkpoint(tmp_path)
    assert (ghn_params["w"] == step).all()
    with CheckpointStore(tmp_path) as store:
        restored = store.restore(lambda params: params)
    assert restored.step == restored.counters["step"] == step
    assert (restored.state["w"] == step).all()


def test_a_checkpoint_half_deleted_by_a_kill_is_skipped(workdir):
    folder = workdir / "checkpoints"
    (folder / "20" / "run" / "metadata").unlink()
    assert_same_bits(load_checkpoint(workdir)[1], make_ghn_params(1))
    shutil.copytree(folder / "10", folder / "5")
    (folder / "5" / "ghn_params" / "manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError, match="; .*checkpoints holds the steps 10; delete the dam"):
        load_checkpoint(folder / "5")


def test_what_is_superseded_has_another_name_before_it_is_deleted(tmp_path, monkeypatch):
    renamed = []

    def leave(path, ignore_errors):
        renamed.append(path)  # as if killed before the first file is deleted

    monkeypatch.setattr("ghn_jax.training.checkpoints.shutil.rmtree", leave)
    with CheckpointStore(tmp_path, keep=1) as store:
        for step in (1, 2, 3):
            save(store, step)
        store.wait()
        assert store.steps() == (3,)
    folder = tmp_path / "checkpoints"
    assert set(renamed) >= {folder / "superseded" / "1"}
    assert sorted(path.name for path in folder.iterdir()) == ["3", "superseded"]
    monkeypatch.undo()
    CheckpointStore(tmp_path, keep=1).close()
    assert sorted(path.name for path in folder.iterdir()) == ["3"]


def test_a_folder_that_is_removed_is_not_made_anew(tmp_path):
    with CheckpointStore(tmp_path / "run") as store:
        save(store, 1)
        store.wait()
        shutil.rmtree(tmp_path / "run")
        message = "run/checkpoints was removed during the run: the run stops, with nothing saved$"
        with pytest.raises(CheckpointError, match=message):
            save(store, 2)
    assert not (tmp_path / "run").exists()


def change_run(workdir, change):
    """Change the JSON of the checkpoint of step 20."""
    file = workdir / "checkpoints" / "20" / "run" / "metadata"
    run = json.loads(file.read_text())
    file.write_text(json.dumps(change(run)))


RUN_ERRORS = {
    "format": ({"format": 99}, "format is 99, expected 1: it was written by another version"),
    "format as text": ({"format": "1"}, "format is '1', expected 1"),
    "format as truth": ({"format": True}, "format is True, expected 1"),
    "step": ({"step": -3}, "step is -3, expected an int of at least 0"),
    "large step": ({"step": 10**30}, "step is 1000.*, expected at most 2147483647"),
    "step as text": ({"step": "20"}, "step is '20', expected an int"),
    "key_impl": ({"key_impl": "fry"}, "key_impl is 'fry', expected 'threefry2x32', 'rbg', 'unsafe"),
    "counters": ({"counters": [1]}, r"counters is \[1\], expected an object"),
    "config": ({"config": None}, "config is None, expected an object"),
    "checksums": ({"checksums": 7}, "checksums is 7, expected an object"),
    "no checksums": ({"checksums": {}}, "checksums.ghn_params is None, expected an object"),
    "checksum": (
        {"checksums": {"ghn_params": {"a": -1}, "opt_state": {}, "key": {}}},
        "checksums.ghn_params.'a' is -1, expected an int",
    ),
}


@pytest.mark.parametrize("case", RUN_ERRORS)
def test_every_value_of_a_run_is_checked(workdir, case):
    changes, message = RUN_ERRORS[case]
    change_run(workdir, lambda run: {**run, **changes})
    folder = workdir / "checkpoints" / "20"
    expected = rf"^the checkpoint {folder} cannot be read \(ValueError: {folder}/run: {message}"
    with pytest.raises(CheckpointError, match=expected) as error:
        load_checkpoint(folder)
    assert "holds the steps 10; delete the damaged one" in str(error.value)


@pytest.mark.parametrize("run", [None, [], 3, "run"])
def test_a_run_of_another_kind_is_refused(workdir, run):
    change_run(workdir, lambda _: run)
    with pytest.raises(CheckpointError, match=r"checkpoints/20 cannot be read \("):
        load_checkpoint(workdir / "checkpoints" / "20")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000])
def test_a_run_that_nests_deeply_is_refused_in_one_line(workdir, text):
    (workdir / "checkpoints" / "20" / "run" / "metadata").write_text(text)
    with pytest.raises(CheckpointError, match=r"checkpoints/20 cannot be read \(") as error:
        load_checkpoint(workdir / "checkpoints" / "20")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500


@pytest.mark.parametrize("section", ["ghn", "data", "space"])
def test_a_config_that_lacks_a_section_is_not_filled_with_defaults(workdir, section):
    def remove(run):
        del run["config"][section]
        return run

    change_run(workdir, remove)
    message = f"^the config in the checkpoint .*/20 lacks {section}, expected every section of a"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(workdir)


def test_a_key_of_another_kind_is_named(workdir):
    """An rbg key has four words, one of threefry two."""
    change_run(workdir, lambda run: {**run, "key_impl": "rbg"})
    with CheckpointStore(workdir) as store:
        with pytest.raises(
            CheckpointError, match="random key in the checkpoint .*/20 is not one o"
        ):
            store.restore(OPTIMIZER.init)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"shape": [2**40]},
            r"^ghn_params of .*/1 does not fit: w has shape \(1099511627776,",
        ),
        (
            {"chunks": [2**40]},
            r"/1 cannot be read \(ValueError: w of shape \(3,\) has chunks of",
        ),
    ],
)
def test_an_array_is_not_read_before_its_declared_size_is_checked(tmp_path, changes, message):
    params = {"w": np.zeros(3, np.float32)}
    with CheckpointStore(tmp_path) as store:
        save(store, 1, params=params, state=OPTIMIZER.init(params))
    base = f"file://{tmp_path}/checkpoints/1/ghn_params/"
    files = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    declared = json.loads(files["w/.zarray"])
    files["w/.zarray"] = json.dumps({**declared, **changes}).encode()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path, lambda config, stored: params)
    with CheckpointStore(tmp_path) as store, pytest.raises(CheckpointError, match=message):
        store.restore(OPTIMIZER.init, params_like=params)


def test_what_orbax_notes_about_a_checkpoint_may_be_damaged(workdir):
    path = workdir / "checkpoints" / "20" / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_timestamp_nsecs": []}))
    message = f"^the checkpoints in {path.parents[1]} cannot be read \\(ValueError: "
    with pytest.raises(CheckpointError, match=message):
        CheckpointStore(workdir)


def test_a_missing_run_is_named(workdir):
    shutil.rmtree(workdir / "checkpoints" / "20" / "run")
    with pytest.raises(CheckpointError, match=r"checkpoints/20', expected the folder of a run or"):
        load_checkpoint(workdir / "checkpoints" / "20")
