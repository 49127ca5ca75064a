"""Drop path, the auxiliary head, DARTS' network, and what a prediction is worth in iterations."""

import dataclasses

import jax
import numpy as np
import pytest
from architecture_samples import ONE_OP, two_cells

from ghn_jax.architectures import RESNET50, darts
from ghn_jax.data import load_dataset, take_shots
from ghn_jax.finetune.config import NetworkConfig
from ghn_jax.finetune.iterations import describe_iterations, draw_iterations, iterations_to_reach
from ghn_jax.finetune.network_training import NetworkTrainer
from ghn_jax.finetune.regularized_network import RegularizedNetwork
from ghn_jax.targets.network import TargetNetwork
from ghn_jax.targets.plan import lower

IMAGES = np.random.default_rng(0).standard_normal((6, 8, 8, 3)).astype(np.float32)
# No skip connections: every input of a sum is an operation's result.
PLAN = lower(two_cells("conv_1x1", "conv_1x1", global_pool=True), 8, 10)


@pytest.fixture(scope="module")
def variables():
    return RegularizedNetwork(PLAN).init(jax.random.key(0), IMAGES, train=True)


def without_head(variables):
    return {
        name: {key: leaf for key, leaf in tree.items() if key != "auxiliary_head"}
        for name, tree in variables.items()
    }


def run(variables, **arguments):
    return RegularizedNetwork(PLAN).apply(
        variables, IMAGES, rngs={"drop_path": jax.random.key(1)}, **arguments
    )


def test_number_of_darts_parameters_is_the_published_one():
    # github.com/quark0/darts prints "param size = 3.349342MB" for DARTS_V2 with 36 channels.
    assert lower(darts(), 32, 10).num_parameters == 3_349_342


def test_without_drop_path_it_is_the_target_network(variables):
    mine = without_head(variables)
    expected = TargetNetwork(PLAN).apply(mine, IMAGES)
    logits, auxiliary = run(variables, train=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert auxiliary.shape == (6, 10)
    evaluated = run(variables)
    np.testing.assert_allclose(
        evaluated, TargetNetwork(PLAN).apply(mine, IMAGES, True), rtol=1e-5, atol=1e-5
    )


def test_drop_path_drops_whole_operations_of_an_image(variables):
    """At rate r an operation of an image is 0 or 1 / (1 - r) of itself."""
    plan = PLAN
    name = next(call.name for call in plan.calls if call.name.endswith("sum0"))
    call = next(call for call in plan.calls if call.name == name)

    def values(rate):
        network = RegularizedNetwork(plan)
        _, state = network.apply(
            variables,
            IMAGES,
            train=True,
            drop_path_rate=rate,
            rngs={"drop_path": jax.random.key(1)},
            capture_intermediates=True,
            mutable=["intermediates", "batch_stats"],
        )
        names = [name, *(plan.calls[index - 1].name for index in call.inputs)]
        return [state["intermediates"][each]["__call__"][0] for each in names]

    total, first, second = values(0.25)
    kinds = set()
    for image in range(len(IMAGES)):
        scale = 1 / 0.75
        candidates = {
            (a, b): scale * (a * first[image] + b * second[image]) for a in (0, 1) for b in (0, 1)
        }
        found = [key for key, x in candidates.items() if np.allclose(x, total[image], atol=1e-5)]
        assert len(found) == 1
        kinds.update(found)
    assert len(kinds) > 1


def test_skip_connections_are_not_dropped():
    plan = lower(dataclasses.replace(ONE_OP["conv_1x1"], global_pool=True), 8, 10)
    network = RegularizedNetwork(plan, has_auxiliary_head=False)
    for call in plan.calls:
        if call.name.endswith("_sum1") and call.name.startswith("cell0"):
            kinds = [network._is_operation(i, call.name) for i in call.inputs]
            assert kinds == [True, False]  # conv_1x1 and the skip connection of state 2


def test_trains_with_all_of_darts_protocol():
    dataset = take_shots(load_dataset("digits"), 4)
    config = NetworkConfig.from_dict(
        {
            "data": {"name": "digits", "batch_size": 20},
            "optimizer": {"name": "sgd", "learning_rate": 0.025, "schedule": "cosine"},
            "training": {
                "num_epochs": 2,
                "cutout": 4,
                "drop_path": 0.2,
                "auxiliary_weight": 0.4,
                "max_validation_images": 20,
            },
        }
    )
    module = RegularizedNetwork(PLAN)
    variables = module.init(jax.random.key(0), IMAGES)
    result = NetworkTrainer(module, dataset, config).run(variables, quiet=True)
    head = ("auxiliary_head", "Dense_0", "kernel")
    before, after = variables["params"], result.variables["params"]
    for name in head:
        before, after = before[name], after[name]
    assert not np.array_equal(before, after)  # the auxiliary loss reaches its head


def test_errors():
    with pytest.raises(ValueError, match="architecture is a ResNet, expected one of cells"):
        RegularizedNetwork(lower(RESNET50, 32, 10))
    with pytest.raises(ValueError, match="image size is 224, expected at most 64"):
        RegularizedNetwork(lower(darts(), 224, 10))


def test_iterations():
    curve = [(0, 0.1), (10, 0.3), (20, 0.25), (30, 0.7)]
    assert iterations_to_reach(curve, 0.05) == 0
    assert iterations_to_reach(curve, 0.2) == pytest.approx(5)
    assert iterations_to_reach(curve, 0.3) == pytest.approx(10)
    assert iterations_to_reach(curve, 0.475) == pytest.approx(25)
    assert iterations_to_reach(curve, 0.8) is None
    assert describe_iterations(curve, 0.2, 10) == (
        "predicted parameters: top-1 20.00%, as 5 iterations (0.50 epochs)"
    )
    assert "more than 30 iterations reached (70.00%)" in describe_iterations(curve, 0.8, 10)


def test_figure(tmp_path):
    draw_iterations([(0, 0.1), (10, 0.3), (20, 0.6)], 0.4, tmp_path / "iterations.svg", "net")
    text = (tmp_path / "iterations.svg").read_text()
    assert "13 iterations" in text and "predicted, not trained" in text
