"""ExperimentConfig: validation, error texts, the round trip through JSON, the list of fields."""

import dataclasses
import json
import re

import jax
import pytest

from ghn_jax.architectures import OPERATIONS
from ghn_jax.configuration import limits
from ghn_jax.configuration.conversion import build_dataclass, iterate_fields
from ghn_jax.training.config import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    OptimizerConfig,
    TrainingConfig,
    describe_fields,
)


def test_defaults_are_the_published_hyperparameters():
    config = ExperimentConfig()
    assert config.data.batch_size == config.evaluation.batch_size == 64
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adam", 1e-3)
    assert (config.optimizer.weight_decay, config.optimizer.clip_norm) == (1e-5, 5.0)
    assert (config.training.meta_batch_size, config.training.max_nodes) == (8, 2200)


def test_round_trip_through_json():
    operations = tuple(operation for operation in OPERATIONS if operation != "msa")
    config = ExperimentConfig.from_dict(
        {
            "data": {"name": "digits", "data_dir": "/data"},
            "space": {"widths": (16, 32), "allowed_operations": operations, "image_size": 8},
            "ghn": {"max_shape": [32, 32, 7, 7]},
            "optimizer": {"schedule": "step", "milestones": [5, 9], "clip_norm": None},
            "evaluation": {"splits": [["val", 3], ["predefined", 2]]},
        }
    )
    assert config.space.widths == (16, 32)
    assert config.optimizer.milestones == (5, 9)
    assert config.evaluation.splits == (("val", 3), ("predefined", 2))
    assert ExperimentConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_int_stands_for_float_but_not_the_reverse():
    config = ExperimentConfig.from_dict({"optimizer": {"learning_rate": 1}})
    assert type(config.optimizer.learning_rate) is float
    with pytest.raises(ValueError, match=r"^config\.training\.num_steps is 10\.0, expected int$"):
        ExperimentConfig.from_dict({"training": {"num_steps": 10.0}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"training": {"num_stpes": 5}},
            "config.training.num_stpes (value 5) is not a field (did you mean 'num_steps'?)",
        ),
        (
            {"optimiser": {}},
            "config.optimiser (value {}) is not a field (did you mean 'optimizer'?)",
        ),
        ({"data": 3}, "config.data is 3, expected a mapping of the fields of DataConfig"),
        ({"data": {"name": None}}, "config.data.name is None, expected str"),
        ({"data": {"batch_size": True}}, "config.data.batch_size is True, expected int"),
        ({"data": {"batch_size": 0}}, "config.data.batch_size is 0, expected a positive int"),
        ({"space": {"widths": 16}}, "config.space.widths is 16, expected tuple[int, ...]"),
        ({"space": {"widths": ["a"]}}, "config.space.widths[0] is 'a', expected int"),
        ({"space": {"widths": [12]}}, "config.space.widths contains 12, expected multiples of 8"),
        (
            {"space": {"allowed_operations": ["conv3x3"]}},
            "config.space.allowed_operations contains 'conv3x3' (did you mean 'conv_3x3'?)",
        ),
        ({"ghn": {"max_shape": [64, 64, 11]}}, "config.ghn.max_shape is [64, 64, 11], expected 4"),
        (
            {"ghn": {"num_classes": 100}},
            "config.ghn.num_classes is 100, expected 10 as space.num_classes",
        ),
        (
            {"optimizer": {"name": "adamm"}},
            "config.optimizer.name is 'adamm' (did you mean 'adam'?), expected 'adam', 'adamw'",
        ),
        (
            {"optimizer": {"learning_rate": -1.0}},
            "config.optimizer.learning_rate is -1.0, expected a number > 0",
        ),
        (
            {"optimizer": {"weight_decay": float("nan")}},
            "config.optimizer.weight_decay is nan, expected a number >= 0",
        ),
        (
            {"optimizer": {"betas": [0.9, 1.0]}},
            "config.optimizer.betas[1] is 1.0, expected a number >= 0 and < 1",
        ),
        (
            {"optimizer": {"milestones": [3]}},
            "config.optimizer.milestones is (3,) with schedule 'constant', expected some with",
        ),
        (
            {"optimizer": {"schedule": "step", "milestones": [3, 3]}},
            "config.optimizer.milestones is (3, 3), expected ascending steps",
        ),
        (
            {"optimizer": {"schedule": "cosine", "warmup_steps": 5}, "training": {"num_steps": 5}},
            "config.optimizer.warmup_steps is 5, expected fewer than training.num_steps (5)",
        ),
        (
            {"optimizer": {"schedule": "linear", "warmup_steps": 9}, "training": {"num_steps": 5}},
            "config.optimizer.warmup_steps is 9, expected fewer than training.num_steps (5) with"
            " schedule 'linear'",
        ),
        (
            {"training": {"max_skipped_share": 1.5}},
            "config.training.max_skipped_share is 1.5, expected a number >= 0 and <= 1",
        ),
        ({"training": {"seed": -1}}, "config.training.seed is -1, expected an int of at least 0"),
        (
            {"evaluation": {"splits": [["tset", 5]]}},
            "config.evaluation.splits[0] is ('tset', 5) (did you mean 'test'?), expected a pair",
        ),
        (
            {"evaluation": {"splits": [["test"]]}},
            "config.evaluation.splits[0] is ['test'], expected 2 values",
        ),
        (
            {"evaluation": {"splits": [["test", 0]]}},
            "config.evaluation.splits[0][1] is 0, expected a positive int",
        ),
    ],
)
def test_errors_name_path_value_and_expectation(values, message):
    with pytest.raises(ValueError) as caught:
        ExperimentConfig.from_dict(values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("section", [DataConfig, OptimizerConfig, TrainingConfig, EvaluationConfig])
def test_sections_are_frozen(section):
    with pytest.raises(dataclasses.FrozenInstanceError):
        section().name = "other"


def test_describe_fields_lists_every_field_with_default_and_sentence():
    text = describe_fields(ExperimentConfig)
    parts = {"ghn.message_passing": "name num_layers num_heads num_rounds forward_only".split()}
    parts["ghn.decoder"] = ["name"]
    expected = {"config.architectures", "config.task.name"}
    for section in dataclasses.fields(ExperimentConfig):
        if section.name in ("architectures", "task"):
            continue
        for field in dataclasses.fields(section.default_factory):
            name = f"{section.name}.{field.name}"
            names = [f"{name}.{part}" for part in parts.get(name, ())] or [name]
            expected |= {f"config.{name}" for name in names}
    assert set(re.findall(r"^  --(\S+) \(default ", text, flags=re.MULTILINE)) == expected
    assert "  --config.optimizer.clip_norm (default 5.0)\n      largest global norm of" in text
    for line in text.splitlines():
        assert line.startswith(("  --config.", "      "))
    for field in iterate_fields(ExperimentConfig):
        assert field.sentence.endswith("."), field.name


def test_missing_field_without_default_and_missing_description():
    @dataclasses.dataclass(frozen=True)
    class Point:
        """A point.

        Attributes:
            x: a coordinate,
                on two lines.
        """

        x: int

    with pytest.raises(ValueError, match=r"^config\.x is missing, expected a value$"):
        build_dataclass(Point, {})
    assert describe_fields(Point) == "  --config.x (required)\n      a coordinate, on two lines."

    @dataclasses.dataclass(frozen=True)
    class Bare:
        """Nothing described."""

        x: int = 0

    with pytest.raises(ValueError, match=r"^Bare\.x has no description, expected one in"):
        describe_fields(Bare)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("training.seed", 2**32, "expected at most 4294967295"),  # the same numbers as of seed 0
        ("training.seed", 2**70, "expected at most 4294967295"),
        ("training.meta_batch_size", 10**9, "expected at most 65536"),
        ("training.num_workers", 10**6, "expected at most 1024"),
        ("training.num_threads", 10**6, "expected at most 1024"),
        ("training.num_steps", 10**12, "expected at most 2147483647"),
        ("training.norm_penalty", 10**400, "expected float"),
        ("ghn.hidden_size", 10**6, "expected at most 8192"),
        ("ghn.num_classes", 10**12, "expected at most 1000000"),
        ("ghn.max_shape", 5, "expected tuple"),
        ("ghn.max_shape", (64, 10**7, 3, 3), "expected at most 8192"),
        ("ghn.message_passing", {"name": "gated_gnn", "num_rounds": 10**9}, "at most 1000"),
        ("space.num_classes", 10**12, "expected at most 1000000"),
        ("space.image_size", 10**9, "expected at most 16384"),
        ("space.num_cells", (10**6, 10**6), "expected at most 1000"),
        ("space.widths", (2**40,), "expected at most 65536"),
        ("data.batch_size", 10**12, "expected at most 1000000"),
        ("evaluation.splits", (("test", 2**40),), "expected at most 2147483647"),
        ("optimizer.milestones", (2**40,), "expected at most 2147483647"),
    ],
)
def test_numbers_beyond_their_limit_are_refused_before_use(name, value, message):
    section, field = name.split(".")
    with pytest.raises(ValueError, match=rf"^config\.{section}\.{field}.* is .*{message}"):
        ExperimentConfig.from_dict({section: {field: value}})


def test_seeds_beyond_the_limit_would_repeat_earlier_ones():
    first, beyond = jax.random.key(0), jax.random.key(limits.SEED + 1)
    assert (jax.random.key_data(first) == jax.random.key_data(beyond)).all()
