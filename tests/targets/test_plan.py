"""Plans: traces equal what Flax initialises; parameters by formula; pruning; errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architecture_samples import COMPACT, ONE_OP, VARIANTS, two_cells
from flax.traverse_util import flatten_dict, unflatten_dict
from plain_composition import jit, one_cell
from random_parameters import draw_parameters

from ghn_jax.architectures import OPERATIONS, VIT, Architecture, Genotype, ResNet
from ghn_jax.sampling import SpaceConfig, sample_architecture
from ghn_jax.sampling.parameter_count import count_parameters
from ghn_jax.targets.initialization import initialize_randomly
from ghn_jax.targets.network import TargetNetwork
from ghn_jax.targets.plan import DisconnectedError, lower

SAMPLES = {**ONE_OP, **VARIANTS, "vit": VIT, "resnet": ResNet((1, 1, 1, 1))}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("image_size", [8, 224])  # the small- and the large-image variant
def test_traced_tensors_equal_those_of_init(name, image_size):
    plan = lower(SAMPLES[name], image_size, 10)
    network = TargetNetwork(plan)
    images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    logits, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    expected = {path: leaf.shape for path, leaf in flatten_dict(variables["params"]).items()}
    assert {tensor.path: tensor.shape for tensor in plan.tensors} == expected
    assert logits.shape == (2, 10)


def test_number_of_parameters_by_hand():
    # conv_3x3 at C = 8, one step, 4 cells, widths 8, 16, 32 (reductions at 1 and 2), 8 x 8 images.
    genotype = Genotype(
        (("conv_3x3", 0), ("none", 1)), (2,), (("max_pool_3x3", 1), ("none", 0)), (2,)
    )
    plan = lower(Architecture(genotype, num_cells=4, channels=8), 8, 10)

    def conv(size, channels_in, channels_out):
        return size * size * channels_in * channels_out + 2 * channels_out

    # Cell 0 reads the stem through preprocess0. Cells 1 and 2 pool input 1. Cell 3 (width 32) reads
    # input 0, the output of cell 1 (width 16), halved by a factorised reduction.
    by_hand = conv(3, 3, 24) + conv(1, 24, 8) + conv(3, 8, 8)  # the stem, cell 0
    by_hand += conv(1, 8, 16)  # cell 1: preprocess1 of cell 0's output
    by_hand += conv(1, 16, 32) + conv(3, 32, 32)  # cell 3
    by_hand += 32 * 10 + 10
    assert plan.num_parameters == by_hand
    # Cell 2 is not read by anything that reaches the output.
    assert not any(call.name.startswith("cell2") for call in plan.calls)


def test_resnet50_has_the_published_number_of_parameters():
    assert lower(ResNet(), 224, 1000).num_parameters == 25_557_032


def test_compact_samples_have_every_operation():
    used = [set(a.genotype.operations) for a in COMPACT.values() if isinstance(a, Architecture)]
    assert set.union(*used) == set(OPERATIONS)


@pytest.mark.parametrize("name", COMPACT)
def test_gradients_are_finite_and_reach_every_parameter(name):
    plan = lower(COMPACT[name], 16, 10)
    rng = np.random.default_rng(0)
    values = initialize_randomly(plan, rng)
    paths = [tensor.path for tensor in plan.tensors]
    images = rng.standard_normal((4, 16, 16, 3), dtype=np.float32)
    network = TargetNetwork(plan)

    @jit
    @jax.grad
    def grad_fn(values):
        params = unflatten_dict(dict(zip(paths, values, strict=True)))
        return jnp.sum(jnp.sin(network.apply({"params": params}, images)))

    for tensor, gradient in zip(plan.tensors, grad_fn(values), strict=True):
        assert np.isfinite(gradient).all(), tensor.path
        # A bias before a batch norm has none: the mean takes it away; the space has no such bias.
        assert np.abs(gradient).max() > 0, tensor.path


def test_running_averages_of_batch_norm():
    plan = lower(two_cells("conv_1x1", "skip_connect"), 8, 10)
    network = TargetNetwork(plan)
    images = np.random.default_rng(0).standard_normal((16, 8, 8, 3), dtype=np.float32)
    variables = draw_parameters(network.init, images)
    stats = jax.tree.map(np.zeros_like, variables["batch_stats"])
    apply = jit(lambda variables: network.apply(variables, images, mutable=["batch_stats"]))
    for _ in range(200):
        variables = {"params": variables["params"], "batch_stats": stats}
        on_batch, updates = apply(variables)
        stats = updates["batch_stats"]
    variables = {"params": variables["params"], "batch_stats": stats}
    on_averages = jit(functools.partial(network.apply, use_running_average=True))(variables, images)
    # After many updates on one batch, averages are its statistics, but the variance is unbiased.
    np.testing.assert_allclose(on_averages, on_batch, rtol=0.2, atol=0.05)
    mean = np.asarray(stats["stem_norm"]["mean"])
    kernel = variables["params"]["stem_conv"]["kernel"]
    stem = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(mean, stem.mean((0, 1, 2)), atol=1e-5)


def test_dropout_acts_only_with_a_key():
    network = TargetNetwork(one_cell("conv_1x1", "skip_connect", num_fc_layers=2))
    images = np.random.default_rng(0).standard_normal((8, 8, 8, 3), dtype=np.float32)
    params = {"params": draw_parameters(network.init, images)["params"]}
    without = jit(network.apply)(params, images)
    with_key = jit(lambda key: network.apply(params, images, rngs={"dropout": key}))
    one, again, other = (with_key(jax.random.key(seed)) for seed in (2, 2, 3))
    np.testing.assert_array_equal(one, again)
    assert min(np.abs(one - other).max(), np.abs(one - without).max()) > 0


def test_missing_outputs():
    none = (("none", 0), ("none", 1))
    cut = Genotype(none, (2,), (("conv_1x1", 0), ("conv_1x1", 1)), (2,))
    with pytest.raises(DisconnectedError, match="does not depend on its input"):
        lower(Architecture(cut, num_cells=4, channels=8), 8, 10)
    # State 2 has no output: the concat fills its half of the channels with zeros.
    half = (*none, ("conv_1x1", 1), ("skip_connect", 0))
    plan = lower(Architecture(Genotype(half, (2, 3), half, (2, 3)), num_cells=1, channels=8), 8, 10)
    concat = next(call for call in plan.calls if call.name == "cell0_concat")
    assert concat.block.present == (False, True) and concat.output_shape == (8, 8, 16)
    output = concat.block.apply({}, jnp.ones((1, 8, 8, 8)))
    np.testing.assert_array_equal(output[0, 0, 0], [0] * 8 + [1] * 8)


def test_bad_arguments():
    with pytest.raises(ValueError, match="image_size is 0, expected a positive integer"):
        lower(VIT, 0, 10)
    with pytest.raises(ValueError, match="num_classes is '10', expected a positive integer"):
        lower(VIT, 8, "10")
    network = TargetNetwork(lower(ResNet(), 32, 10))
    with pytest.raises(ValueError, match=r"images have shape \(2, 3, 32, 32\), expected .*NHWC"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((2, 3, 32, 32)))


@pytest.mark.parametrize("num_channels", [1, 4])
def test_networks_of_other_channels_differ_in_the_stem_only(num_channels):
    architecture = sample_architecture(SpaceConfig(widths=(16,)), 0, 3)
    plan, usual = (lower(architecture, 8, 10, n) for n in (num_channels, 3))
    differing = [
        (one.shape, other.shape)
        for one, other in zip(plan.tensors, usual.tensors, strict=True)
        if one.shape != other.shape
    ]
    ((ours, others),) = differing
    assert (ours[2], others[2]) == (num_channels, 3) and ours[:2] == others[:2]
    assert plan.input_shape == (8, 8, num_channels)
    counts = [count_parameters(architecture, 8, 10, n) for n in (num_channels, 3)]
    assert counts[1] - counts[0] == usual.num_parameters - plan.num_parameters
    images = jnp.zeros((2, 8, 8, num_channels))
    assert jax.eval_shape(TargetNetwork(plan).init_with_output, jax.random.key(0), images)[
        0
    ].shape == (2, 10)
    with pytest.raises(ValueError, match="^num_channels is 0, expected a positive integer"):
        lower(architecture, 8, 10, 0)
