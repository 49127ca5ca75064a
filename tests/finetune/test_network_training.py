"""Training one network: against steps written out, resuming, what is shared, and the errors."""

import dataclasses
import json
import os
import shutil
import signal
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ghn_jax.data import CropAndFlip, TrainBatches, load_dataset, take_shots
from ghn_jax.evaluation.architecture_specs import resolve_module
from ghn_jax.finetune.config import FinetuneConfig, NetworkConfig
from ghn_jax.finetune.initialization import NetworkInitializer
from ghn_jax.finetune.network_programs import call_arguments
from ghn_jax.finetune.network_training import DivergedError, NetworkTrainer
from ghn_jax.models import build
from ghn_jax.training.checkpoint_files import CheckpointError
from ghn_jax.training.interruption import InterruptedRunError


class Net(nn.Module):
    """A convolution, a batch norm, dropout and a head."""

    width: int = 8
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(self.width, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return nn.Dense(10)(x.mean((1, 2)))


def config_of(**sections):
    values = {
        "data": {"name": "digits", "batch_size": 16},
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "schedule": "cosine"},
        "training": {"num_steps": 6, "log_every": 2, "calibrate": False},
    }
    for name, fields in sections.items():
        values[name] = {**values[name], **fields}
    return NetworkConfig.from_dict(values)


@pytest.fixture(scope="module")
def digits():
    dataset = load_dataset("digits")
    return dataclasses.replace(
        take_shots(dataset, 10), validation=dataset.validation.subset(np.arange(50))
    )


@pytest.fixture(scope="module")
def variables():
    return Net().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_steps_are_sgds(digits, variables):
    result = NetworkTrainer(Net(), digits, config_of()).run(variables, seed=3, quiet=True)

    params, stats = variables["params"], variables["batch_stats"]
    momentum = jax.tree.map(jnp.zeros_like, params)
    batches = TrainBatches(digits, 16, 3)
    for step in range(6):
        images, labels = batches.batch(step)

        def loss_fn(params, stats=stats, images=images, labels=labels):
            logits, new = Net().apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), new["batch_stats"]

        grads, stats = jax.grad(loss_fn, has_aux=True)(params)
        norm = optax.global_norm(grads)
        grads = jax.tree.map(lambda g, n=norm: g * jnp.minimum(1, 5.0 / n), grads)
        momentum = jax.tree.map(
            lambda m, g, p: 0.9 * m + g + np.float32(1e-5) * p, momentum, grads, params
        )
        rate = np.float32(0.1 * (1 + np.cos(np.pi * step / 6)) / 2)
        params = jax.tree.map(lambda p, m, r=rate: p - r * m, params, momentum)
    for a, b in zip(
        jax.tree.leaves({"params": params, "batch_stats": stats}),
        jax.tree.leaves({name: result.variables[name] for name in ("params", "batch_stats")}),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


def test_rates_and_seeds_share_one_program(digits, variables):
    trainer = NetworkTrainer(Net(), digits, config_of())
    results = [
        trainer.run(variables, seed=seed, learning_rate=rate, quiet=True).variables
        for seed, rate in ((0, 0.1), (0, 0.01), (1, 0.1), (0, 0.1))
    ]
    assert trainer.programs.update._cache_size() == 1
    assert_same(results[0], results[3])
    kernels = [result["params"]["Dense_0"]["kernel"] for result in results[:3]]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    # What a rate does is what a config with that rate does.
    other = NetworkTrainer(Net(), digits, config_of(optimizer={"learning_rate": 0.01}))
    assert_same(other.run(variables, seed=0, quiet=True).variables, results[1])


def read_metrics(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "wall_time"} for line in lines]


def test_resumes_bit_for_bit(digits, variables, tmp_path):
    config = config_of(
        training={"num_steps": 8, "checkpoint_every": 3, "evaluate_every": 2, "calibrate": True}
    )
    module = Net(dropout=0.3)
    trainer = NetworkTrainer(module, digits, config)
    whole = trainer.run(variables, workdir=tmp_path / "whole", quiet=True)
    assert [point.step for point in whole.curve] == [0, 2, 4, 6, 8]

    class Killed(Exception):
        pass

    def step(state, batch, rate, seed, number, original=trainer.step):
        if number == 5:
            raise Killed
        return original(state, batch, rate, seed, number)

    trainer.step = step
    with pytest.raises(Killed):
        trainer.run(variables, workdir=tmp_path / "killed", quiet=True)
    del trainer.step
    resumed = trainer.run(variables, workdir=tmp_path / "killed", quiet=True)
    assert_same(resumed.variables, whole.variables)
    assert resumed.curve == whole.curve
    # Lines of metrics cover 2 steps, the killed run was saved after 3.
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    # A finished run is only read.
    again = trainer.run(variables, workdir=tmp_path / "whole", quiet=True)
    assert_same(again.variables, whole.variables)


def test_goes_on_from_a_checkpoint_of_an_earlier_version(digits, variables, tmp_path):
    """Its counters are the curve only."""
    config = config_of(training={"checkpoint_every": 3, "keep_checkpoints": 2})
    trainer = NetworkTrainer(Net(), digits, config)
    whole = trainer.run(variables, workdir=tmp_path, quiet=True)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    file = tmp_path / "checkpoints" / "3" / "run" / "metadata"
    saved = json.loads(file.read_text())
    del saved["counters"]["losses"]
    file.write_text(json.dumps(saved))
    resumed = trainer.run(variables, workdir=tmp_path, quiet=True)
    assert_same(resumed.variables, whole.variables)
    assert resumed.curve == whole.curve


def test_sigterm_saves(digits, variables, tmp_path):
    config = config_of(training={"num_steps": 100_000})
    trainer = NetworkTrainer(Net(), digits, config)
    timer = threading.Timer(2.0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(InterruptedRunError, match=r"step \d+ of 100000 is saved in"):
        trainer.run(variables, workdir=tmp_path, quiet=True)
    assert list((tmp_path / "checkpoints").iterdir())


def test_other_settings_or_another_network_are_refused(digits, variables, tmp_path):
    NetworkTrainer(Net(), digits, config_of()).run(variables, workdir=tmp_path, quiet=True)
    other = NetworkTrainer(Net(), digits, config_of(training={"label_smoothing": 0.1}))
    with pytest.raises(CheckpointError, match=r"training.label_smoothing = 0.0, but the conf"):
        other.run(variables, workdir=tmp_path, quiet=True)
    wide = Net(width=16)
    with pytest.raises(CheckpointError, match="does not fit|another network's parameters"):
        NetworkTrainer(wide, digits, config_of()).run(
            wide.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))), workdir=tmp_path, quiet=True
        )


def test_a_loss_that_is_not_finite_ends_the_run(digits, variables):
    config = config_of(optimizer={"clip_norm": None})
    trainer = NetworkTrainer(Net(), digits, config)
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step \d with learning rate"):
        trainer.run(variables, learning_rate=1e30, quiet=True)


def test_calibration_gives_running_statistics_of_training_images(digits, variables):
    trainer = NetworkTrainer(Net(), digits, config_of())
    stats = trainer.calibrate(variables, seed=0)["batch_stats"]["BatchNorm_0"]
    batches = TrainBatches(digits, 16, 0)
    means = []
    for step in range(batches.steps_per_epoch):
        images, _ = batches.batch(step)
        features = nn.Conv(8, (3, 3)).apply({"params": variables["params"]["Conv_0"]}, images)
        means.append(features.mean((0, 1, 2)))
    np.testing.assert_allclose(stats["mean"], np.mean(means, axis=0), rtol=1e-4, atol=1e-5)


def test_mixed_image_sizes(digits, variables):
    config = config_of(training={"image_sizes": (6, 8, 10), "num_steps": 12})
    trainer = NetworkTrainer(Net(), digits, config)
    trainer.run(variables, quiet=True)
    assert trainer.programs.update._cache_size() == 3


def test_image_sizes_that_change_parameters_are_refused(digits):
    config = config_of(training={"image_sizes": (8, 16)})
    with pytest.raises(
        ValueError, match="training.image_sizes has 16, for which parameters of a V"
    ):
        NetworkTrainer(build("small_vit", 10), digits, config)
    with pytest.raises(ValueError, match="training.image_sizes has 16, on which the network fails"):
        NetworkTrainer(resolve_module("resnet50", 8, 10), digits, config)


def test_evaluation_counts_each_image_once(digits, variables):
    config = config_of(training={"evaluation_batch_size": 33})
    accuracy = NetworkTrainer(Net(), digits, config).evaluate(variables, "test")
    from ghn_jax.data import normalize

    images, labels = digits.test.read(np.arange(len(digits.test)))
    logits = Net().apply(variables, normalize(images, digits.mean, digits.std))
    assert accuracy == pytest.approx(np.mean(np.argmax(logits, -1) == labels))


def test_cutout_and_drop_path_are_checked(digits):
    with pytest.raises(ValueError, match="training.drop_path is 0.2, expected 0 for a Net"):
        NetworkTrainer(Net(), digits, config_of(training={"drop_path": 0.2}))
    with pytest.raises(ValueError, match="training.cutout is 9, expected at most the image size"):
        NetworkTrainer(Net(), digits, config_of(training={"cutout": 9}))


def test_what_a_trainer_is_made_of(digits):
    for arguments, text in (
        (("net", digits, config_of()), "module is 'net', expected a Flax linen module"),
        ((Net(), "digits", config_of()), "dataset is 'digits', expected a ghn_jax.data.Dataset"),
        ((Net(), digits, {}), "config is {}, expected a NetworkConfig"),
    ):
        with pytest.raises(ValueError, match=f"^{text}"):
            NetworkTrainer(*arguments)


def test_call_arguments():
    class Deterministic(nn.Module):
        def __call__(self, x, deterministic: bool = True):
            return x

    assert call_arguments(Net()).train == {"train": True}
    assert call_arguments(Deterministic()).evaluate == {"deterministic": True}
    assert not call_arguments(Net()).has_drop_path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training": {"drop_path": 1.0}}, r"config.training.drop_path is 1.0, expected a number"),
        ({"training": {"image_sizes": (8, 0)}}, r"config.training.image_sizes\[1\] is 0"),
        ({"training": {"num_epoch": 3}}, "config.training.num_epoch .*did you mean 'num_epochs'"),
        ({"learning_rates": (0.1, 0)}, r"config.learning_rates\[1\] is 0"),
        ({"inits": ("ghn", "orth")}, r"config.inits\[1\] is 'orth'"),
        ({"learning_rates": (0.1, 0.1)}, r"config.learning_rates is \(0.1, 0.1\), expected each"),
        ({"inits": ("ghn", "ghn")}, r"config.inits is \('ghn', 'ghn'\), expected each once"),
        ({"noise_beta": -1.0}, "config.noise_beta is -1.0, expected a finite number"),
        ({"inits": ()}, r"config.inits is \(\), expected some of random"),
        ({"first_layer": 0}, "config.first_layer is 0, expected a positive int"),
        ({"classifier": "none"}, "config.classifier is 'none'"),
    ],
)
def test_config_errors(values, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig.from_dict(values)


def test_seeds_are_added_up_only_if_their_number_is_one():
    with pytest.raises(ValueError, match="^num_seeds is '2', expected a positive int"):
        FinetuneConfig(num_seeds="2")


def test_config_survives_json():
    config = FinetuneConfig.from_dict({"learning_rates": (0.1, 0.2), "num_shots": 5})
    assert FinetuneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_shots_are_the_first_of_each_class():
    dataset = load_dataset("digits")
    few = take_shots(dataset, 3)
    _, labels = dataset.train.read(np.arange(len(dataset.train)))
    images, found = few.train.read(np.arange(len(few.train)))
    assert np.bincount(found).tolist() == [3] * 10
    for label in range(10):
        expected, _ = dataset.train.read(np.flatnonzero(labels == label)[:3])
        np.testing.assert_array_equal(images[found == label], expected)
    assert few.test is dataset.test
    with pytest.raises(ValueError, match=r"num_shots is 999, expected at most \d+: class 0 of"):
        take_shots(dataset, 999)


def test_cutout_blanks_one_square():
    dataset = dataclasses.replace(
        load_dataset("digits"), train_transform=CropAndFlip(padding=0, flip=False)
    )
    plain, _ = TrainBatches(dataset, 64, 0).batch(5)
    cut, _ = TrainBatches(dataset, 64, 0, cutout=4).batch(5)
    differs = (plain != cut).any(-1)
    assert (cut[differs] == 0).all()
    # Pixels that were 0 before cannot be told; none of these digits' borders is, once normalised.
    for image in differs:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert 1 <= len(rows) <= 4 and 1 <= len(columns) <= 4
        assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    sizes = differs.sum((1, 2))
    assert sizes.max() == 16 and sizes.min() < 16  # squares at the border are cut off
    np.testing.assert_array_equal(cut, TrainBatches(dataset, 64, 0, cutout=4).batch(5)[0])


def test_grey_images_of_several_sizes_and_predicted_networks_of_one_channel():
    grey = take_shots(load_dataset("digits", num_channels=1), 2)
    config = config_of(training={"num_steps": 1, "image_sizes": (6, 8)})
    variables = Net().init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    trainer = NetworkTrainer(Net(), grey, config)
    result = trainer.run(variables, quiet=True)
    assert result.variables["params"]["Conv_0"]["kernel"].shape == (3, 3, 1, 8)
    module = resolve_module("vit", 8, 10, num_channels=1)
    initializer = NetworkInitializer(module, None, 8, 10, num_channels=1)
    random = initializer.make("random", jax.random.key(0))
    assert {leaf.shape[2] for leaf in jax.tree.leaves(random) if leaf.ndim == 4} >= {1}
