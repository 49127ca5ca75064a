"""The engine equals one jitted network with its gradient; compilations are bounded and stop."""

import itertools

import jax
import numpy as np
import optax
import pytest
from architecture_samples import COMPACT, two_cells
from flax.traverse_util import flatten_dict, unflatten_dict
from plain_composition import jit, one_cell

from ghn_jax.architectures import VIT
from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.programs.cache import ProgramCache
from ghn_jax.sampling import ArchitectureStream, SpaceConfig
from ghn_jax.targets.blocks import Block
from ghn_jax.targets.initialization import initialize_randomly
from ghn_jax.targets.network import TargetNetwork
from ghn_jax.targets.plan import lower
from ghn_jax.tasks import Batch, Classification


def whole_network(plan, values, images, labels, label_smoothing):
    network = TargetNetwork(plan)
    paths = [tensor.path for tensor in plan.tensors]

    def loss_fn(params):
        logits = network.apply({"params": params}, images)
        targets = jax.nn.one_hot(labels, 10) * (1 - label_smoothing) + label_smoothing / 10
        return optax.softmax_cross_entropy(logits, targets).mean(), logits

    params = unflatten_dict(dict(zip(paths, values, strict=True)))
    (loss, logits), grads = jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    grads = flatten_dict(grads)
    return loss, logits, [grads[path] for path in paths]


def test_equals_the_whole_network(x64):
    # In float64, where no relu or max-pool decision flips on rounding.
    names = ("flatten", "stem 1", "attention", "no preprocess", "resnet")
    plans = [lower(COMPACT[name], 8, 10) for name in names]
    used = {type(call.block) for plan in plans for call in plan.calls}
    assert used == set(Block.__subclasses__())
    rng = np.random.default_rng(0)
    params = [[v.astype(np.float64) for v in initialize_randomly(p, rng)] for p in plans]
    images, labels = rng.standard_normal((6, 8, 8, 3)), rng.integers(0, 10, 6).astype(np.int32)
    programs = ProgramCache()
    engine = BlockwiseEngine(Classification(label_smoothing=0.1).loss_fn, programs=programs)
    results = engine.loss_and_grads(plans, params, Batch(images, labels))
    threaded = BlockwiseEngine(
        Classification(label_smoothing=0.1).loss_fn, num_threads=2, programs=programs
    )
    for one, other in zip(
        results, threaded.loss_and_grads(plans, params, Batch(images, labels)), strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    for plan, values, result in zip(plans, params, results, strict=True):
        loss, logits, grads = whole_network(plan, values, images, labels, 0.1)
        np.testing.assert_allclose(result.loss, loss, rtol=1e-10)
        np.testing.assert_allclose(
            engine.logits(plan, values, images), logits, rtol=1e-9, atol=1e-9
        )
        for tensor, actual, expected in zip(plan.tensors, result.grads, grads, strict=True):
            scale = np.abs(expected).max()
            assert np.abs(actual - expected).max() <= 1e-9 * scale + 1e-13, tensor.path


def test_nothing_is_compiled_twice():
    names = ("conv_1x1", "avg_pool_3x3")
    plans = [lower(two_cells(name, "skip_connect"), 8, 10) for name in names]
    rng = np.random.default_rng(0)
    params = [initialize_randomly(plan, rng) for plan in plans]
    engine = BlockwiseEngine()
    labels = np.zeros(4, np.int32)
    engine.loss_and_grads(plans, params, Batch(np.ones((4, 8, 8, 3), np.float32), labels))
    first = engine.num_compilations
    assert first < 2 * sum(len(plan.calls) for plan in plans), "programs are shared"
    for _ in range(2):
        images = rng.standard_normal((4, 8, 8, 3), dtype=np.float32)
        engine.loss_and_grads(plans, params, Batch(images, labels))
        engine.logits(plans[0], params[0], images)
    assert engine.num_compilations == first


def test_dropout_needs_a_key_and_follows_it():
    plan = one_cell("conv_1x1", "skip_connect", num_fc_layers=2)
    params = initialize_randomly(plan, np.random.default_rng(0))
    images = np.random.default_rng(1).standard_normal((4, 8, 8, 3), dtype=np.float32)
    batch = Batch(images, np.zeros(4, np.int32))
    engine = BlockwiseEngine()

    def loss(key):
        keys = None if key is None else [jax.random.key(key)]
        return float(engine.loss_and_grads([plan], [params], batch, keys)[0].loss)

    assert loss(None) == loss(None) and loss(0) == loss(0)
    assert len({loss(None), loss(0), loss(1)}) == 3


def test_bfloat16_is_close_and_gives_float32():
    # 8 bits of mantissa: values differ by about a hundredth, through two cells and their norms.
    rng = np.random.default_rng(0)
    plans = [lower(two_cells("msa", "conv_1x1"), 6, 10), one_cell("conv_3x3", "max_pool_3x3")]
    params = [initialize_randomly(plan, rng) for plan in plans]
    labels = rng.integers(0, 10, 32).astype(np.int32)
    for plan, values in zip(plans, params, strict=True):
        images = rng.standard_normal((32, *[plan.image_size] * 2, 3), dtype=np.float32)
        inputs = ([plan], [values], Batch(images, labels))
        (one,) = BlockwiseEngine().loss_and_grads(*inputs)
        (other,) = BlockwiseEngine(compute_dtype="bfloat16").loss_and_grads(*inputs)
        assert other.loss.dtype == np.float32
        np.testing.assert_allclose(other.loss, one.loss, rtol=0.03)
        assert one.loss != other.loss, "computed in float32"
        for b in other.grads:
            assert b.dtype == np.float32
        flat = [np.concatenate([np.ravel(g) for g in r.grads]) for r in (one, other)]
        cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
        assert cosine > 0.98


def test_warm_up_compiles_what_covers_the_calls():
    plans = [lower(two_cells("avg_pool_3x3", "skip_connect"), 8, 10)]
    params = [initialize_randomly(plan, np.random.default_rng(0)) for plan in plans]
    engine, seen = BlockwiseEngine(), []

    def progress(keys, total):
        for key in keys:
            seen.append(key)
            yield key
        assert len(seen) == total

    # Of 20 calls none makes up 1%: all signatures are compiled, and then only the sums of several
    # cotangents and the loss are missing.
    num_programs = engine.warm_up(plans, 4, coverage=1.0, progress=progress)
    assert num_programs == len(set(seen)) > 5
    warm = engine.num_compilations
    batch = Batch(np.ones((4, 8, 8, 3), np.float32), np.zeros(4, np.int32))
    engine.loss_and_grads(plans, params, batch)
    assert engine.num_compilations - warm <= 3
    few = BlockwiseEngine()
    assert few.warm_up(plans, 4, coverage=0.3) < num_programs
    with pytest.raises(ValueError, match="coverage is 1.5, expected 0 <= value <= 1"):
        engine.warm_up(plans, 4, coverage=1.5)


@pytest.mark.slow
def test_compilations_of_many_architectures_are_bounded():
    # 200 random architectures of a space whose networks are small and few-sized.
    space = SpaceConfig(
        widths=(8,),
        fc_sizes=(8,),
        image_size=4,
        global_pool_only=True,
        allowed_operations=("max_pool_3x3", "avg_pool_3x3", "skip_connect", "conv_1x1", "none"),
    )
    plans = [lower(a, 4, 10) for a in itertools.islice(ArchitectureStream(space, 0), 200)]
    rng = np.random.default_rng(0)
    params = [initialize_randomly(plan, rng) for plan in plans]
    engine = BlockwiseEngine()
    labels = np.zeros(2, np.int32)
    images = rng.standard_normal((2, 2, 4, 4, 3), dtype=np.float32)
    engine.loss_and_grads(plans, params, Batch(images[0], labels))
    num_calls = sum(len(plan.calls) for plan in plans)
    first = engine.num_compilations
    assert first < 0.03 * num_calls, (first, num_calls)
    engine.loss_and_grads(plans, params, Batch(images[1], labels))
    assert engine.num_compilations == first


def test_bad_compute_dtype():
    with pytest.raises(ValueError, match="compute_dtype is 'half', expected one of float32"):
        BlockwiseEngine(compute_dtype="half")


def test_a_vit_runs():
    plan = lower(VIT, 32, 10)
    params = initialize_randomly(plan, np.random.default_rng(0))
    logits = BlockwiseEngine().logits(plan, params, np.ones((2, 32, 32, 3), np.float32))
    assert logits.shape == (2, 10) and np.isfinite(logits).all()
