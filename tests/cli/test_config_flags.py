"""The command line: overrides, and errors of one line instead of tracebacks."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import ml_collections
import pytest
from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import config_flags

from ghn_jax.cli.config_dict import build_config, default_config, packaged_configs
from ghn_jax.cli.config_flags import check_arguments, resolve_names, split_none
from ghn_jax.cli.network_flags import define_import_flag
from ghn_jax.finetune.config import FinetuneConfig, NetworkConfig
from ghn_jax.hypernetworks.message_passing import MESSAGE_PASSING
from ghn_jax.training.config import ExperimentConfig

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(
    path.stem for path in (ROOT / "launch" / "configs").glob("*.py") if path.stem != "__init__"
)
SMOKE = "launch/configs/smoke.py"

PROGRAM = '''
"""A program."""
from ghn_jax.cli.config_flags import run

def main(config, workdir):
    print(workdir, config.training.num_steps, config.space.widths, config.training.max_nodes,
          config.optimizer.learning_rate, config.training.target_dropout, config.data.data_dir,
          config.evaluation.splits, config.space.max_steps, config.ghn.message_passing.name)

run(main)
'''


STOPS = '''
"""A program that is asked to stop."""
from ghn_jax.cli.config_flags import run
from ghn_jax.training.interruption import InterruptedRunError

def main(config, workdir):
    raise InterruptedRunError(f"asked to stop: {workdir}")

run(main)
'''


def run_program(*arguments, program=PROGRAM):
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )


def test_default_config_holds_every_default():
    assert build_config(default_config()) == ExperimentConfig()
    assert build_config(ml_collections.ConfigDict()) == ExperimentConfig()


def test_config_files_cannot_set_what_does_not_exist():
    config = default_config()
    with pytest.raises(AttributeError, match="num_steps"):
        config.training.num_stpes = 3
    with pytest.raises(TypeError):
        config.space.widths = 16
    config.space.widths = (16,)
    assert build_config(config).space.widths == (16,)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_valid_and_documented(name):
    module = importlib.import_module(f"ghn_jax.configs.{name}")
    kind = {"finetune": FinetuneConfig, "network": NetworkConfig}.get(name.split("_")[0])
    config = build_config(module.get_config(), kind or ExperimentConfig)
    if kind is None:
        assert config.ghn.num_classes == config.space.num_classes
    for heading in ("Source: ", "Command: ", "Hardware: ", "Result: "):
        assert f"\n{heading}" in module.__doc__
    assert f"--config launch/configs/{name}.py" in module.__doc__


def test_published_hyperparameters():
    configs = {
        name: build_config(importlib.import_module(f"ghn_jax.configs.{name}").get_config())
        for name in ("cifar10_ghn1", "cifar10_ghn2", "cifar10_mlp", "imagenet_ghn2")
    }
    for config in configs.values():
        assert config.optimizer.milestones[0] * 3 == config.training.num_steps * 2
        assert config.optimizer.milestones[1] * 6 == config.training.num_steps * 5
    ghn1, ghn2 = configs["cifar10_ghn1"], configs["cifar10_ghn2"]
    assert (ghn1.ghn.virtual_edges, ghn1.training.meta_batch_size) == (1, 1)
    assert not ghn1.ghn.layer_norm and not ghn1.ghn.normalize_parameters
    assert (ghn2.ghn.virtual_edges, ghn2.training.meta_batch_size) == (50, 8)
    # 45 000 training images in batches of 64, the last incomplete one left out.
    assert ghn2.training.num_steps == 300 * 703
    assert configs["cifar10_mlp"].ghn.message_passing.name == "mlp"
    imagenet = configs["imagenet_ghn2"]
    assert imagenet.ghn.max_shape == (64, 64, 16, 16)
    assert (imagenet.data.batch_size, imagenet.training.label_smoothing) == (256, 0.1)


def test_published_hyperparameters_of_single_networks():
    def load(name, kind):
        return build_config(importlib.import_module(f"ghn_jax.configs.{name}").get_config(), kind)

    sgd = load("network_sgd50", NetworkConfig)
    assert (sgd.training.num_epochs, sgd.data.batch_size) == (50, 96)
    rule = sgd.optimizer
    assert (rule.name, rule.learning_rate, rule.schedule) == ("sgd", 0.025, "cosine")
    darts = load("network_darts600", NetworkConfig)
    assert darts.optimizer == rule and darts.training.num_epochs == 600
    training = darts.training
    assert (training.cutout, training.drop_path, training.auxiliary_weight) == (16, 0.2, 0.4)
    for name, optimizer, rate, decay, batch, layer in (
        ("finetune_resnet50", "sgd", 0.01, 0.01, 96, 37),
        ("finetune_convnext_b", "adamw", 1e-3, 0.1, 48, 94),
    ):
        config = load(name, FinetuneConfig)
        rule = config.optimizer
        assert (rule.name, rule.learning_rate, rule.weight_decay) == (optimizer, rate, decay)
        assert (config.data.batch_size, config.first_layer) == (batch, layer)
        assert (config.noise_beta, config.num_shots) == (3e-5, 100)
        assert config.training.num_epochs == 300


def test_overrides_reach_the_program(tmp_path):
    result = run_program(
        f"--config={SMOKE}",
        "--config.training.num_steps=12",
        "--config.space.widths=(16, 32)",
        "--config.training.max_nodes=300",
        "--config.optimizer.learning_rate=1e-4",
        "--noconfig.training.target_dropout",
        "--config.data.data_dir=/data",
        "--config.evaluation.splits=(('test', 5),)",
        "--config.ghn.message_passing=mlp",
        f"--workdir={tmp_path}",
    )
    assert result.stderr == ""
    values = "12 (16, 32) 300 0.0001 False /data (('test', 5),) 1 mlp"
    assert result.stdout == f"{tmp_path} {values}\n"


def test_optional_fields_of_every_type_can_be_none(tmp_path):
    result = run_program(
        f"--config={SMOKE}",
        "--config.optimizer.clip_norm=None",  # float
        "--config.training.max_nodes",  # int, and the value as a word of its own
        "None",
        "--config.data.data_dir=/data",
        "--config.data.data_dir=None",  # str; the last value counts
        "--config.data.image_size=None",
        "--config.data.image_size=16",
        f"--workdir={tmp_path}",
        program=PROGRAM.replace(
            "print(workdir, ",
            "print(config.optimizer.clip_norm, config.data.image_size, ",
        ),
    )
    assert result.stderr == ""
    assert result.stdout.split()[:2] == ["None", "16"]
    words = result.stdout.split()
    assert words.count("None") == 3  # and max_nodes, data_dir


def test_none_is_taken_from_optional_fields_only():
    arguments = ["p", "--config.training.num_steps=None", "--config.optimizer.clip_norm=None"]
    assert split_none(arguments) == (arguments[:2], ["optimizer.clip_norm"])
    assert split_none(["p", "--config.optimizer.clip_norm"]) == (
        ["p", "--config.optimizer.clip_norm"],
        [],
    )
    result = run_program(f"--config={SMOKE}", "--workdir=x", arguments[1])
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: flag --config.training.num_steps=None: invalid literal")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [f"--config={SMOKE}", "--workdir=x", "--config.training.num_stpes=5"],
            "config.training.num_stpes (value '5') is not a field (did you mean"
            " 'config.training.num_steps'?); --help lists all fields",
        ),
        (
            [f"--config={SMOKE}", "--workdir=x", "--config.training.num_steps=many"],
            "flag --config.training.num_steps=many: invalid literal for int() with base 10: 'many'",
        ),
        (
            [f"--config={SMOKE}", "--workdir=x", "--config.optimizer.name=adamm"],
            "config.optimizer.name is 'adamm' (did you mean 'adam'?), expected 'adam', 'adamw',"
            " 'sgd'",
        ),
        ([f"--config={SMOKE}", "--workdri=x"], "Unknown command line flag 'workdri'."),
        ([f"--config={SMOKE}"], "--workdir is missing, expected the folder for checkpoints"),
        ([f"--config={SMOKE}", "--workdir=x", "12"], "unexpected argument '12', expected only"),
    ],
)
def test_mistakes_give_one_line(arguments, message):
    result = run_program(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_a_run_that_was_stopped_says_so_and_exits_with_status_75():
    result = run_program(f"--config={SMOKE}", "--workdir=x", program=STOPS)
    assert (result.returncode, result.stderr) == (75, "error: asked to stop: x\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.training.num_stpes = 5", 'Did you mean "num_steps" instead of "num_stpes"?'),
        ("config.training.num_steps = 'many'", "many"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("config = None", "get_config() returned None, expected a ConfigDict"),
    ],
)
def test_mistakes_in_a_config_file_name_it(tmp_path, line, message):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ghn_jax.cli.config_dict import default_config\n"
        f"def get_config():\n    config = default_config()\n    {line}\n    return config\n"
    )
    result = run_program(f"--config={path}", "--workdir=x", "--config.training.seed=3")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith(f"error: --config {path}: ")
    assert result.stderr.count("\n") == 1


def test_help_lists_all_fields():
    result = run_program("--help")
    assert result.returncode == 0
    names = re.findall(r"^  --config\.(\S+) \(default", result.stdout, flags=re.MULTILINE)
    expected = {".".join(path) for path in flatten_dict(default_config().to_dict())}
    assert set(names) == expected
    assert "ghn.message_passing.num_heads" in expected


def test_packaged_configs_go_by_name():
    assert set(packaged_configs()) == set(CONFIGS)
    assert set(packaged_configs("network")) == {n for n in CONFIGS if n.startswith("network")}
    assert not {"finetune_study", "network_digits"} & set(packaged_configs("train"))
    path = str(packaged_configs()["smoke"])
    assert resolve_names(["p", "--config=smoke", "--x=smoke"]) == [
        "p",
        f"--config={path}",
        "--x=smoke",
    ]
    assert resolve_names(["p", "--config", "smoke:3"]) == ["p", "--config", f"{path}:3"]
    # A file goes before a name, and what is neither stays for the error to show.
    others = [f"--config={SMOKE}", "--config", "x"]
    assert resolve_names(others) == others


def test_paths_and_fields_are_checked_with_near_matches():
    with pytest.raises(ValueError, match=r"^--config is missing, expected a Python file or one"):
        check_arguments(["--workdir=x"])
    with pytest.raises(
        ValueError,
        match=r"^--config is 'launch/configs/smok\.py' \(did you mean 'smoke'\?\), expected",
    ):
        check_arguments(["--config", "launch/configs/smok.py"])
    with pytest.raises(ValueError, match=r"\(did you mean 'config\.training\.meta_batch_size'\?\)"):
        check_arguments([f"--config={ROOT / SMOKE}", "--config.data.meta_batch_size=3"])
    with pytest.raises(ValueError, match=r"^config\.training \(value '3'\) is not a field"):
        check_arguments([f"--config={ROOT / SMOKE}", "--config.training=3"])
    check_arguments([f"--config={ROOT / SMOKE}", "--noconfig.training.target_dropout"])


OWN_PART = """
import flax.linen as nn
import ghn_jax
import number_of_rounds
from ghn_jax.configs import smoke

@ghn_jax.register_message_passing("in_the_file")
class InTheFile(nn.Module):
    size: int = 3

    def __call__(self, nodes, batch):
        return nodes

def get_config():
    config = smoke.get_config()
    config.ghn.message_passing.name = "in_the_file"
    config.ghn.message_passing.size = number_of_rounds.NUMBER
    return config
"""


def test_a_config_file_may_register_parts_and_import_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(MESSAGE_PASSING, "_modules", dict(MESSAGE_PASSING._modules))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own.py").write_text(OWN_PART)
    (tmp_path / "number_of_rounds.py").write_text("NUMBER = 5")
    arguments = [f"--config={tmp_path}/own.py", "--config.ghn.message_passing.size=7"]
    check_arguments(arguments)  # runs the file, as does ml_collections after it
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", flag_values=values, sys_argv=["program", *arguments]
    )
    values(["program", *arguments])
    found = build_config(config.value).ghn.message_passing
    assert (found.name, found.size) == ("in_the_file", 7)
    with pytest.raises(
        ValueError, match=r"config\.ghn\.message_passing\.sise .*message_passing\.size"
    ):
        check_arguments([arguments[0], "--config.ghn.message_passing.sise=7"])


def test_modules_that_a_ghn_needs_are_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "registers_a_part.py").write_text("IS_IMPORTED = True")
    (tmp_path / "is_broken.py").write_text("raise KeyError('part')")
    values = flags.FlagValues()
    define_import_flag(values)
    values(["program", "--import=registers_a_part"])
    assert sys.modules.pop("registers_a_part").IS_IMPORTED
    with pytest.raises(flags.Error, match="cannot import 'is_broken': KeyError: part"):
        values(["program", "--import", "is_broken"])
    with pytest.raises(flags.Error, match="cannot import 'no_such': ModuleNotFoundError: No mod"):
        values(["program", "--import", "registers_a_part,no_such"])
    sys.modules.pop("registers_a_part")


def test_an_optional_field_is_set_to_none():
    arguments = ["--config.optimizer.clip_norm=1.5", "--config.optimizer.clip_norm=None"]
    assert split_none(["x", *arguments]) == (["x"], ["optimizer.clip_norm"])
    assert split_none(arguments[::-1]) == (arguments[:1], [])  # the last one counts
    required = ["--config.optimizer.learning_rate=None"]
    assert split_none(required) == (required, [])
    config = default_config()
    config.optimizer.clip_norm = 1.5
    assert build_config(config).optimizer.clip_norm == 1.5
    assert build_config(config, unset=["optimizer.clip_norm"]).optimizer.clip_norm is None
