"""The optimizers against values computed by hand and a naive Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.training.config import OptimizerConfig
from ghn_jax.training.optimizers import create_optimizer, create_schedule


def apply_gradients(config, ghn_params, gradients, num_steps=100):
    """Return the parameters after one step per gradient."""
    optimizer = create_optimizer(config, num_steps)
    state = optimizer.init(ghn_params)

    @jax.jit
    def step(ghn_params, state, gradient):
        updates, state = optimizer.update(gradient, state, ghn_params)
        return jax.tree.map(jnp.add, ghn_params, updates), state

    for gradient in gradients:
        ghn_params, state = step(ghn_params, state, gradient)
    return ghn_params


def test_sgd_with_momentum_and_l2():
    config = OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=0.1, momentum=0.5)
    one = jnp.float32(1.0)
    # d = 1 + 0.1 * 2 = 1.2; 2 - 0.12 = 1.88.
    np.testing.assert_allclose(apply_gradients(config, jnp.float32(2.0), [one]), 1.88, rtol=1e-6)
    # d = 0.5 * 1.2 + 1 + 0.188 = 1.788; 1.88 - 0.1788 = 1.7012.
    result = apply_gradients(config, jnp.float32(2.0), [one, one])
    np.testing.assert_allclose(result, 1.7012, rtol=1e-6)


def test_adamw_decays_apart_from_the_gradient():
    config = OptimizerConfig(name="adamw", learning_rate=0.1, weight_decay=0.1)
    # The first Adam step is the sign of the gradient: 2 - 0.1 * (1 + 0.1 * 2).
    result = apply_gradients(config, jnp.float32(2.0), [jnp.float32(3.0)])
    np.testing.assert_allclose(result, 1.88, rtol=1e-6)


def test_adam_second_step_by_hand():
    config = OptimizerConfig(learning_rate=1.0, weight_decay=0.0, betas=(0.5, 0.5))
    # m = 0.25 + 1.5 = 1.75, v = 0.25 + 4.5 = 4.75, both over 1 - 0.25:
    # 2.333333 / sqrt(6.333333) = 0.927173; the first step was 1.
    result = apply_gradients(config, jnp.float32(0.0), [jnp.float32(1.0), jnp.float32(3.0)])
    np.testing.assert_allclose(result, -1.927173, rtol=1e-6)


def test_adam_adds_l2_to_the_gradient():
    learning_rate, decay, (b1, b2) = 0.01, 0.3, (0.9, 0.99)
    config = OptimizerConfig(
        learning_rate=learning_rate, weight_decay=decay, betas=(b1, b2), clip_norm=None
    )
    gradients = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    value, m, v = np.array([1.0, -2.0, 0.5]), np.zeros(3), np.zeros(3)
    for count, gradient in enumerate(gradients, start=1):
        total = gradient + decay * value
        m = b1 * m + (1 - b1) * total
        v = b2 * v + (1 - b2) * total**2
        step = (m / (1 - b1**count)) / (np.sqrt(v / (1 - b2**count)) + 1e-8)
        value = value - learning_rate * step
    result = apply_gradients(config, jnp.array([1.0, -2.0, 0.5]), list(jnp.asarray(gradients)))
    np.testing.assert_allclose(result, value, rtol=1e-5)


def test_clipping_takes_the_norm_of_all_arrays_before_weight_decay():
    config = OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=0.1, momentum=0.0)
    ghn_params = {"a": jnp.array([10.0]), "b": jnp.array([[10.0]])}
    gradient = {"a": jnp.array([30.0]), "b": jnp.array([[40.0]])}
    # Norm 50 becomes 5: (3, 4); L2 adds 1 to each; times 0.1.
    result = apply_gradients(config, ghn_params, [gradient])
    np.testing.assert_allclose(result["a"], [9.6], rtol=1e-6)
    np.testing.assert_allclose(result["b"], [[9.5]], rtol=1e-6)


def test_small_gradients_are_not_clipped():
    config = OptimizerConfig(name="sgd", learning_rate=1.0, weight_decay=0.0, momentum=0.0)
    result = apply_gradients(config, jnp.array([0.0, 0.0]), [jnp.array([3.0, 4.0])])
    np.testing.assert_allclose(result, [-3.0, -4.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "num_steps", "rates"),
    [
        (OptimizerConfig(learning_rate=2.0), 9, [2.0, 2.0, 2.0]),
        (OptimizerConfig(learning_rate=2.0, warmup_steps=4), 9, [0.5, 1.0, 1.5, 2.0, 2.0]),
        (
            OptimizerConfig(
                learning_rate=1.0, schedule="step", milestones=(2, 4), decay_factor=0.1
            ),
            9,
            [1.0, 1.0, 0.1, 0.1, 0.01, 0.01],
        ),
        # (1 + cos(pi t / 4)) / 2.
        (
            OptimizerConfig(learning_rate=1.0, schedule="cosine"),
            4,
            [1.0, 0.8535534, 0.5, 0.1464466, 0.0],
        ),
        # The same after two steps of warmup.
        (
            OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup_steps=2),
            6,
            [0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466, 0.0],
        ),
        (
            OptimizerConfig(learning_rate=1.0, schedule="linear", warmup_steps=2),
            6,
            [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0],
        ),
    ],
)
def test_schedules(config, num_steps, rates):
    schedule = jax.jit(create_schedule(config, num_steps))
    computed = [float(schedule(jnp.int32(step))) for step in range(len(rates))]
    np.testing.assert_allclose(computed, rates, atol=1e-6)


def test_optimizer_follows_the_schedule():
    config = OptimizerConfig(
        name="sgd", learning_rate=1.0, weight_decay=0.0, momentum=0.0, schedule="step",
        milestones=(1,), decay_factor=0.5,
    )  # fmt: skip
    result = apply_gradients(config, jnp.float32(0.0), [jnp.float32(1.0)] * 3)
    np.testing.assert_allclose(result, -(1.0 + 0.5 + 0.5), rtol=1e-6)
