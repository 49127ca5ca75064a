"""Losses and metrics by hand; terms on parameters; tasks of one's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.tasks import TASKS, Batch, Classification, norm_penalty, on_each_tensor, register_task
from ghn_jax.tasks.classification import cross_entropy, label_ranks


def test_cross_entropy_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32))
    labels = np.array([0, 2], np.int32)
    expected = -(np.log(0.5) + np.log(0.1)) / 2
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-6)
    # Smoothing 0.3 puts 0.1 on every class and 0.7 more on the label.
    rows = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    smoothed = -(rows * logits).sum() / 2
    np.testing.assert_allclose(cross_entropy(logits, labels, 0.3), smoothed, rtol=1e-6)


def test_ranks_by_hand():
    nan = np.nan
    logits = [
        [0.1, 0.7, 0.2],  # the label is first,
        [0.7, 0.1, 0.2],  # last,
        [0.7, 0.7, 0.2],  # tied with another for the first place: not right,
        [nan, 0.7, 0.2],  # behind a class that is not a number,
        [0.1, nan, 0.2],  # itself not a number, behind all three
        [nan, nan, nan],
        [-np.inf, -np.inf, -np.inf],
        [0.3, np.inf, np.inf],
    ]
    labels = np.ones(len(logits), np.int32)
    ranks = label_ranks(np.array(logits, np.float32), labels)
    np.testing.assert_array_equal(ranks, [0, 2, 1, 1, 3, 3, 2, 1])
    # Labels differ by row: the second guess, the fifth, the sixth of six.
    logits = np.array([[5, 4, 3, 2, 1, 0]] * 3, np.float32)
    np.testing.assert_array_equal(label_ranks(logits, np.array([1, 4, 5])), [1, 4, 5])


def test_loss_and_metrics_of_classification():
    outputs = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32))
    batch = Batch(np.zeros((2, 4, 4, 1), np.float32), np.array([0, 2], np.int32))
    task = Classification((4, 4, 1), 3, label_smoothing=0.3)
    expected = cross_entropy(outputs, batch.labels, 0.3)
    np.testing.assert_array_equal(task.loss_fn(outputs, batch), expected)
    metrics = task.metrics_fn(outputs, batch)
    assert {name: values.tolist() for name, values in metrics.items()} == {
        "top1": [True, False],
        "top5": [True, True],
    }
    assert list(metrics) == list(task.metric_labels)
    with pytest.raises(ValueError, match="label_smoothing is 1.5, expected 0 <= value < 1"):
        Classification(label_smoothing=1.5)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_norm_penalty_by_hand(convert):
    arrays = [convert(np.array([[3.0, 0], [0, 4]], np.float32)), convert(np.zeros(2, np.float32))]
    value, gradients = norm_penalty(0.5)(arrays)
    np.testing.assert_allclose(value, 0.5 * 5)
    np.testing.assert_allclose(gradients[0], [[0.3, 0], [0, 0.4]], rtol=1e-6)
    np.testing.assert_array_equal(gradients[1], [0, 0])
    assert all(g.dtype == np.float32 for g in gradients)
    with pytest.raises(ValueError, match="^weight is -1, expected a number of at least 0"):
        norm_penalty(-1)


def test_a_function_of_each_tensor_is_the_same_term():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in ((2, 3), (4,), (2, 3))]
    ours, others = norm_penalty(0.1), on_each_tensor(lambda p: 0.1 * jnp.sqrt(jnp.vdot(p, p)))
    (value, gradients), (other, other_gradients) = ours(arrays), others(arrays)
    np.testing.assert_allclose(value, other, rtol=1e-6)
    for one, another in zip(gradients, other_gradients, strict=True):
        np.testing.assert_allclose(one, another, rtol=1e-5)


def test_tasks_of_ones_own_are_named():
    @register_task("regression")
    @dataclasses.dataclass(frozen=True)
    class Regression:
        """Numbers from images.

        Attributes:
            input_shape: (S, S, C).
            num_outputs: how many numbers.
            scale: by which they are divided.
        """

        input_shape: tuple[int, ...] = ()
        num_outputs: int = 1
        scale: float = 1.0

    try:
        task = TASKS.create(
            TASKS.config("regression", scale=2.0),
            input_shape=(8, 8, 3),
            num_outputs=2,
            label_smoothing=0.1,
        )
        assert task == Regression((8, 8, 3), 2, 2.0)
        assert jax.tree.leaves(task) == [task]
    finally:
        del TASKS._modules["regression"]
    with pytest.raises(ValueError, match="^name is 'clasification' .*'classification'"):
        TASKS.config("clasification")
