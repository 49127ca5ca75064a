"""Networks as users get them pass every transformation of JAX; spellings agree on derivatives.

Derivatives in float64, against the native spelling, finite differences and each other.
"""

import functools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_composition import jit

import ghn_jax
from ghn_jax.architectures import Architecture, Genotype, ResNet
from ghn_jax.models import build
from ghn_jax.models.mobilenet import InvertedResidual
from ghn_jax.models.resnet import ResNetModule
from ghn_jax.targets import blocks
from ghn_jax.targets.cpu import attention, convolution, normalization, pooling
from ghn_jax.targets.network import TargetNetwork
from ghn_jax.targets.operations import NATIVE
from ghn_jax.targets.plan import lower
from ghn_jax.targets.spelling import (
    default_operations,
    operations_with_adjoints,
    with_operations,
)
from ghn_jax.tracing import trace

CPU = default_operations("cpu")
BLOCKS = {
    "conv": blocks.Conv(4, (3, 3)),
    "strided conv": blocks.Conv(4, (3, 3), (2, 2)),
    "strided 5x5 conv": blocks.Conv(4, (5, 5), (2, 2)),
    "pointwise conv": blocks.Conv(4, (1, 1)),
    "depthwise conv": blocks.DepthwiseConv(3, 1, 1),
    "dilated conv": blocks.DepthwiseConv(5, 2, 2),
    "factorized reduce": blocks.FactorizedReduce(8),
    "batch norm": blocks.BatchNorm(),
    "max pool": blocks.Pool("max", 1),
    "strided max pool": blocks.Pool("max", 2),
    "average pool": blocks.Pool("avg", 2),
    "attention": blocks.Attention(),
    "squeeze-excite": blocks.SqueezeExcite(),
    "patches": blocks.PatchStem(4, 3),
}


def normal_like(tree, seed):
    """A tree of normal float64 arrays; unit variance keeps relus and maxima apart."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [rng.standard_normal(leaf.shape) for leaf in leaves])


def derivatives(loss_fn, x, tangent):
    """Of a scalar function: gradient, jvp, Hessian-vector products, the same for two tangents."""
    grad_fn = jax.grad(loss_fn)
    directional_fn = lambda x: jax.jvp(loss_fn, (x,), (tangent,))[1]  # noqa: E731
    two = jax.tree.map(lambda t: jnp.stack([t, 2 * t]), tangent)
    return {
        "gradient": grad_fn(x),
        "jvp": directional_fn(x),
        "forward over reverse": hessian_product(loss_fn, x, tangent),
        "reverse over forward": jax.grad(directional_fn)(x),
        "reverse over reverse": jax.grad(lambda x: inner(grad_fn(x), tangent))(x),
        "vmap": jax.vmap(lambda t: hessian_product(loss_fn, x, t))(two),
    }


def hessian_product(loss_fn, x, tangent):
    return jax.jvp(jax.grad(loss_fn), (x,), (tangent,))[1]


def inner(one, other):
    return sum(map(jnp.vdot, jax.tree.leaves(one), jax.tree.leaves(other)))


def assert_close(actual, expected, tolerance=1e-9):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


def assert_slopes(found, loss_fn, x, tangent):
    """Derivatives along the tangent are what finite differences say."""
    step = 1e-6
    ahead, behind = (
        jax.tree.map(lambda x, t, sign=sign: x + sign * step * t, x, tangent) for sign in (1, -1)
    )
    run = jit(jax.value_and_grad(loss_fn))
    slopes = jax.tree.map(lambda a, b: (a - b) / (2 * step), run(ahead), run(behind))
    assert_close((found["jvp"], found["forward over reverse"]), slopes, 1e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_derivative_of_a_block(x64, name):
    block = BLOCKS[name]
    images = np.random.default_rng(0).standard_normal((2, 6, 6, 8))
    images_32 = images.astype(np.float32)
    shapes = jax.eval_shape(block.init, jax.random.key(0), images_32).get("params", {})
    x = (normal_like(shapes, 1), images)
    tangent = normal_like(x, 2)

    def loss_fn(x, operations):
        y = block.clone(operations=operations).apply({"params": x[0]}, x[1])
        return jnp.sum(jnp.sin(y) * jnp.cos(jnp.arange(y.size)).reshape(y.shape))

    run = jit(
        lambda x, tangent: [
            derivatives(functools.partial(loss_fn, operations=operations), x, tangent)
            for operations in (CPU, NATIVE)
        ]
    )
    found, native = run(x, tangent)
    assert_close(found, native)
    assert_close(found["jvp"], inner(found["gradient"], tangent))
    product = found["forward over reverse"]
    assert_close(found["reverse over forward"], product)
    assert_close(found["reverse over reverse"], product)
    assert_close(found["vmap"], jax.tree.map(lambda p: jnp.stack([p, 2 * p]), product))
    assert_slopes(found, functools.partial(loss_fn, operations=CPU), x, tangent)


def network_derivatives(loss_fn, native_fn, params, tangent):
    """Fewer than of a block: a network compiles for seconds."""

    def run(params, tangent):
        directional_fn = lambda x: jax.jvp(loss_fn, (x,), (tangent,))[1]  # noqa: E731
        slope, product = jax.value_and_grad(directional_fn)(params)
        found = {"jvp": slope, "forward over reverse": hessian_product(loss_fn, params, tangent)}
        return found, product, hessian_product(native_fn, params, tangent)

    found, *others = jit(run)(params, tangent)
    for product in others:
        assert_close(found["forward over reverse"], product)
    assert_slopes(found, loss_fn, params, tangent)


@pytest.mark.slow
def test_derivatives_of_a_predicted_network(x64):
    cell = (("sep_conv_3x3", 0), ("max_pool_3x3", 1), ("msa", 0), ("conv_3x3", 1))
    architecture = Architecture(Genotype(cell, (2, 3), cell, (2, 3)), num_cells=2, channels=8)
    prediction = ghn_jax.load("digits").predict(architecture, image_size=8)
    network, params = prediction.network, prediction.variables["params"]
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3))

    def loss_fn(params, network=network):
        return -jnp.mean(jax.nn.log_softmax(network.apply({"params": params}, images))[:, 3])

    # Small beside the parameters, so that finite differences cross no relu.
    tangent = jax.tree.map(lambda t: 0.01 * t, normal_like(params, 1))
    native_fn = functools.partial(loss_fn, network=with_operations(network, NATIVE))
    network_derivatives(loss_fn, native_fn, params, tangent)


# A block of MobileNet, with a depthwise convolution, and a ResNet, with all its norms.
@pytest.mark.parametrize(
    "network",
    [
        InvertedResidual(3, 1, 2, operations=CPU),
        with_operations(ResNetModule((1, 1), 3, width=8, small_images=True), CPU),
    ],
    ids=["mobilenet", "resnet"],
)
def test_derivatives_of_a_model(x64, network):
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3))
    variables = jax.eval_shape(network.init, jax.random.key(0), images.astype(np.float32))
    params = jax.tree.map(lambda x: 0.3 * x, normal_like(variables["params"], 1))
    stats = jax.tree.map(lambda x: np.zeros(x.shape), variables.get("batch_stats", {}))

    def loss_fn(params, network=network):
        variables = {"params": params, "batch_stats": stats}
        logits, _ = network.apply(variables, images, train=True, mutable="batch_stats")
        return -jnp.mean(jax.nn.log_softmax(logits)[..., 2])

    tangent = jax.tree.map(lambda t: 0.1 * t, normal_like(params, 2))
    native_fn = functools.partial(loss_fn, network=with_operations(network, NATIVE))
    network_derivatives(loss_fn, native_fn, params, tangent)


def test_adjoints_by_hand_take_no_tangent():
    # Why they are not what users get.
    network = with_operations(blocks.Conv(4, (3, 3)), operations_with_adjoints("cpu"))
    variables = network.init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
    with pytest.raises(TypeError, match="forward-mode autodiff .* to a custom_vjp function"):
        jax.jvp(lambda x: network.apply(variables, x), *[(jnp.ones((1, 4, 4, 3)),)] * 2)


def test_who_chooses_which_spelling():
    plan = lower(ResNet(), 32, 10)
    assert default_operations("gpu") is TargetNetwork(plan).operations is NATIVE
    assert build("mobilenet_v2").operations == default_operations() == CPU
    assert build("mobilenet_v2", operations=NATIVE).operations is NATIVE
    assert build("deepnets_vit").operations == CPU
    assert not hasattr(build("vit_b16", operations=NATIVE), "operations")
    assert ghn_jax.load("digits").predict(ResNet()).network.operations == CPU
    on_cpu, elsewhere = map(operations_with_adjoints, ("cpu", "gpu"))
    assert on_cpu.convolve is convolution.convolve_with_adjoint
    assert on_cpu.convolve_depthwise is convolution.convolve_depthwise_with_adjoint
    assert on_cpu.max_pool is pooling.max_pool_with_adjoint
    for operations in (on_cpu, elsewhere):
        assert operations.batch_norm is normalization.batch_norm_with_adjoint
        assert operations.attend is attention.attend_with_adjoint
    assert elsewhere.convolve is NATIVE.convolve and elsewhere.max_pool is NATIVE.max_pool


def test_modules_with_other_operations_are_other_modules():
    network = TargetNetwork(lower(ResNet(), 32, 10))
    other = with_operations(network, CPU)
    assert other != network and with_operations(other, NATIVE) == network
    assert "operations" not in repr(other)
    # As a program's key after a round trip.
    assert pickle.loads(pickle.dumps(CPU)) == CPU


@pytest.mark.parametrize(
    "operations", [CPU, operations_with_adjoints("cpu")], ids=["plain", "with adjoints"]
)
def test_the_tracer_reads_any_spelling_as_the_native_one(operations):
    class Wrapped(nn.Module):
        network: nn.Module

        def __call__(self, x):
            return self.network(x)

    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    cell = (("sep_conv_5x5", 0), ("max_pool_3x3", 1), ("msa", 0), ("dil_conv_3x3", 1))
    architecture = Architecture(Genotype(cell, (2, 3), cell, (2, 3)), num_cells=3, channels=8)
    network = TargetNetwork(lower(architecture, 8, 10))
    expected = trace(network, images).graph
    wrapped = Wrapped(with_operations(network, operations))
    params = jax.eval_shape(wrapped.init, jax.random.key(0), images)
    for model, arguments in ((wrapped, {}), (wrapped.apply, {"params": params})):
        found = trace(model, images, **arguments).graph
        for field in ("primitive", "shape", "senders", "receivers", "distance"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    # Nor are modules changed that are the caller's own, bound to variables.
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params["params"]["network"])
    bound = network.clone(operations=operations).bind({"params": zeros})
    trace(lambda params, x: bound(x) * params, images, params=jnp.ones(()))
    assert wrapped.network.operations == bound.operations == operations
