"""A device's part of a step: the same numbers on any device, and in halves where memory lacks."""

import functools

import jax
import numpy as np
import pytest
from jax.experimental import serialize_executable
from plain_composition import one_cell

from ghn_jax.engine.blockwise import BlockwiseEngine
from ghn_jax.hypernetworks import GHNConfig
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.parallel.replica import Replica, Work, _are_finite_on_device, _are_finite_on_host
from ghn_jax.programs import relocation
from ghn_jax.programs.cache import ProgramCache
from ghn_jax.programs.relocation import programs_on
from ghn_jax.targets.graph import build_graph
from ghn_jax.tasks import Batch

CONFIG = GHNConfig(hidden_size=8, max_shape=(8, 8, 7, 7))
PLANS = tuple(
    one_cell(*pair)
    for pair in (("conv_1x1", "skip_connect"), ("avg_pool_3x3", "conv_1x1"), ("conv_1x1",) * 2)
)
WORK = Work((0, 1, 2), PLANS, tuple(map(build_graph, PLANS)), 3)


@functools.cache
def caches():
    return ProgramCache(), ProgramCache()


def make_replica(device):
    ghn, targets = (programs_on(cache, device) for cache in caches())
    return Replica(device, Predictor(CONFIG, programs=ghn), BlockwiseEngine(programs=targets))


@functools.cache
def inputs():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 8, 8, 3), dtype=np.float32)
    return Batch(images, rng.integers(0, 10, 4).astype(np.int32))


@functools.cache
def ghn_params():
    return Predictor(CONFIG, programs=caches()[0]).init(jax.random.key(0))


@functools.cache
def expected():
    return make_replica(jax.devices()[0]).loss_and_grads(ghn_params(), WORK, inputs())


def assert_same(result, other, tolerance):
    np.testing.assert_allclose(result.losses, other.losses, rtol=tolerance)
    assert result.finite.all() and other.finite.all()
    for one, two in zip(*map(jax.tree.leaves, (result.grads, other.grads)), strict=True):
        one, two = np.asarray(one), np.asarray(two)
        assert np.abs(one - two).max() <= tolerance * np.abs(two).max()


def test_another_device_computes_the_same_without_compiling():
    before = expected(), sum(cache.num_compilations for cache in caches())
    second = jax.devices()[1]
    params = jax.device_put(ghn_params(), second)
    result = make_replica(second).loss_and_grads(params, WORK, inputs())
    assert_same(result, before[0], 0.0)
    assert {d for leaf in jax.tree.leaves(result.grads) for d in leaf.devices()} == {second}
    assert sum(cache.num_compilations for cache in caches()) == before[1]


def test_where_jax_changed_inside_programs_compile_for_each_device(monkeypatch, caplog):
    before = expected(), sum(cache.num_compilations for cache in caches())
    # As if a release had moved what JAX's loader is built on.
    monkeypatch.delattr(serialize_executable, "_JaxPjrtUnpickler")
    relocation.can_relocate.cache_clear()
    try:
        second = jax.devices()[1]
        params = jax.device_put(ghn_params(), second)
        result = make_replica(second).loss_and_grads(params, WORK, inputs())
    finally:
        relocation.can_relocate.cache_clear()
    assert_same(result, before[0], 0.0)
    assert sum(cache.num_compilations for cache in caches()) > before[1]
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once
    assert "programs are compiled for each device" in caplog.text


class TooSmall(BlockwiseEngine):
    """An engine whose memory holds so many architectures."""

    limit = 1
    sizes: list[int] = []

    def loss_and_grads(self, plans, *arguments):
        self.sizes.append(len(plans))
        if len(plans) > self.limit:
            jax.block_until_ready(jax.numpy.zeros(2**46))  # 256 terabytes
        return super().loss_and_grads(plans, *arguments)


def test_finite_on_device_is_finite_on_host():
    ones = np.ones(3, np.float32)
    grads = [[ones, np.ones((2, 2), np.float32)], [ones, ones * np.nan], [-ones * np.inf, ones], []]
    assert _are_finite_on_host(grads) == [True, False, False, True]
    assert _are_finite_on_device([list(map(jax.device_put, g)) for g in grads]) == [
        *(True, False, False, True)
    ]


def test_cutting_on_the_device_computes_the_same():
    replica = make_replica(jax.devices()[0])
    replica.predictor = Predictor(CONFIG, programs=caches()[0], cutting="device")
    # The sums over repeats of a tile have another order: float32 rounding, through the decoders.
    assert_same(replica.loss_and_grads(ghn_params(), WORK, inputs()), expected(), 1e-5)
    # Copies of the same programs on the other device, where everything then stays.
    second = jax.devices()[1]
    programs = (programs_on(cache, second) for cache in caches())
    other = Replica(
        second,
        Predictor(CONFIG, programs=next(programs), cutting="device"),
        BlockwiseEngine(programs=next(programs)),
    )
    result = other.loss_and_grads(jax.device_put(ghn_params(), second), WORK, inputs())
    assert_same(result, expected(), 1e-5)
    assert {d for leaf in jax.tree.leaves(result.grads) for d in leaf.devices()} == {second}


def test_out_of_memory_goes_on_in_halves(caplog):
    replica = make_replica(jax.devices()[0])
    replica.engine = TooSmall(programs=caches()[1])
    replica.engine.sizes = []
    result = replica.loss_and_grads(ghn_params(), WORK, inputs())
    assert replica.engine.sizes == [3, 1, 2, 1, 1]
    # The sum over architectures has another order: float32 rounding.
    assert_same(result, expected(), 1e-5)
    assert "out of memory on cpu:0 with 3 architectures; going on with 1 and 2" in caplog.text


def test_one_architecture_that_does_not_fit_ends_it():
    replica = make_replica(jax.devices()[0])
    replica.engine = TooSmall(programs=caches()[1])
    replica.engine.limit = 0
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        replica.loss_and_grads(ghn_params(), WORK, inputs())


def test_other_errors_are_not_taken_for_lack_of_memory():
    replica = make_replica(jax.devices()[0])
    replica.engine = Broken(programs=caches()[1])
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        replica.loss_and_grads(ghn_params(), WORK, inputs())


class Broken(BlockwiseEngine):
    def loss_and_grads(self, *arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: RESOURCE_EXHAUSTED is not the code")
