"""Whole hypernetworks: the original's predictions, and how they behave under jit."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import draw_parameters
from reference_predictions import LOCAL, load_ghn, load_prediction, skip_for_want_of

from ghn_jax.graphs import GraphBatch
from ghn_jax.hypernetworks import (
    Hypernetwork,
    TileKey,
    ghn1,
    ghn2,
    initialize,
    mlp,
)
from ghn_jax.hypernetworks.normalization import kernel_factor
from ghn_jax.hypernetworks.tiling import (
    KERNEL_KINDS,
    VECTOR_KINDS,
    request_key,
    tile_parameter,
    tile_slices,
)

KINDS = (*KERNEL_KINDS, *VECTOR_KINDS)

# The original's GHNs on architectures of all splits: attention, positions, 1x7 kernels,
# squeeze-excitation, one and two classifier layers, up to 559 nodes.
EMBEDDINGS = [
    *(f"val_{i}_{ghn}" for i in (2, 0, 1) for ghn in ("ghn1", "ghn2", "mlp")),
    *(f"{name}_ghn2" for name in ("test_0", "test_2", "bnfree_0", "deep_1", "wide_1")),
]
TENSORS = [
    *(f"val_{i}_{ghn}" for i in (2, 0) for ghn in ("ghn1", "mlp")),
    *(f"{name}_ghn2" for name in ("val_2", "test_2", "bnfree_2", "deep_1", "dense_0", "wide_1")),
]
SMALL = {"hidden_size": 8, "max_shape": (6, 4, 5, 5)}


@functools.cache
def jit_of(ghn, method):
    """A method of one of the original's GHNs, compiled once for all tests."""
    config, variables, _ = load_ghn(ghn)
    apply = jax.jit(functools.partial(Hypernetwork(config).apply, method=method))
    return functools.partial(apply, variables)


def embed(ghn, batch):
    """Embed the nodes of one graph, padded so that few sizes are compiled."""
    num_nodes = batch.primitive.shape[1]
    extra = (256 if num_nodes <= 256 else 640) - num_nodes
    padded = GraphBatch(
        primitive=np.pad(batch.primitive, ((0, 0), (0, extra))),
        shape_index=np.pad(batch.shape_index, ((0, 0), (0, extra), (0, 0))),
        distance=np.pad(batch.distance, ((0, 0), (0, extra), (0, extra))),
        node_mask=np.pad(batch.node_mask, ((0, 0), (0, extra))),
    )
    return jit_of(ghn, "embed_nodes")(padded)[0]


@pytest.mark.reference
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_node_embeddings_are_the_originals(name):
    ghn = name.rsplit("_", 1)[1]
    prediction = load_prediction(name, load_ghn(ghn).config)
    found = np.asarray(embed(ghn, prediction.batch))[: len(prediction.embeddings)]
    # 1e-6 is reached; embeddings are of order 1.
    np.testing.assert_allclose(found, prediction.embeddings, rtol=0, atol=1e-5)


@pytest.mark.reference
@pytest.mark.parametrize("name", TENSORS)
def test_predicted_tensors_are_the_originals(name):
    ghn = name.rsplit("_", 1)[1]
    config, variables, _ = load_ghn(ghn)
    if not np.any(variables["params"]["kernels"]["kernel_3"]):
        skip_for_want_of(f"the kernel decoder of {ghn}")
    prediction = load_prediction(name, config)
    tensors_of: dict[TileKey, list] = {}
    for index, predicted in enumerate(prediction.tensors):
        max_shape = config.max_shape if index % 2 else None  # with and without bounds on channels
        key = request_key(predicted.tensor.shape, predicted.tensor.role, max_shape)
        tensors_of.setdefault(key, []).append(predicted)
    embeddings = embed(ghn, prediction.batch)
    for key, tensors in tensors_of.items():
        nodes = [predicted.tensor.node for predicted in tensors]
        nodes += nodes[:1] * (-len(nodes) % 32)
        requests = {key: np.array(nodes, np.int32)}
        tiles = np.asarray(jit_of(ghn, "decode")(embeddings, requests)[key])
        for predicted, tile in zip(tensors, tiles, strict=False):
            tensor = predicted.tensor
            factor = 1.0
            if config.normalize_parameters and len(tensor.shape) > 1:
                factor = kernel_factor(tensor.shape, tensor.role)
            index = tile_slices(tile.shape, tensor.shape, tensor.role)
            found = tile_parameter(tile, tensor.shape, index, factor, np)
            assert found.shape == tensor.shape
            predicted.check(found)


def test_reference_holds_every_kind_of_tensor():
    # What the two tests above compare is not empty where only the copies in the repository are.
    assert {path.name for path in LOCAL.glob("predict_val_*")} == {
        f"predict_val_2_{ghn}.npz" for ghn in ("ghn1", "ghn2", "mlp")
    }
    tensors = load_prediction("val_2_ghn1", ghn1(max_shape=(16, 16, 11, 11))).tensors
    roles = {predicted.tensor.role for predicted in tensors}
    assert roles == {"kernel", "depthwise", "bias", "classifier_kernel", "classifier_bias"}
    assert len(tensors) == 35


def small_batch(num_graphs=2, num_nodes=5):
    rng = np.random.default_rng(0)
    distance = np.tril(rng.integers(0, 4, (num_graphs, num_nodes, num_nodes)), -1)
    return GraphBatch(
        primitive=rng.integers(0, 15, (num_graphs, num_nodes)).astype(np.int32),
        shape_index=rng.integers(0, 8, (num_graphs, num_nodes, 4)).astype(np.int32),
        distance=distance.astype(np.uint8),
        node_mask=np.ones((num_graphs, num_nodes), bool),
    )


def draw_variables(config):
    return draw_parameters(Hypernetwork(config).init, small_batch(), [()])


def decode(config, variables, requests):
    apply = Hypernetwork(config).apply
    return apply(variables, small_batch(), requests, method="embed_and_decode")


def test_initial_parameters_are_drawn_as_published():
    # PyTorch's defaults: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), embeddings N(0, 1), norms 1 and 0.
    params = initialize(ghn2(hidden_size=16, max_shape=(8, 8, 3, 3)), jax.random.key(0))["params"]
    for array, fan_in in {
        "gnn/mlp_kernel_1": 16,
        "gnn/mlp_virtual_kernel_2": 8,
        "gnn/gru_state_kernel": 16,
        "kernels/kernel_2": 64,
        "kernels/kernel_3": 128,
        "vectors/mlp/layer_1/kernel": 16,
    }.items():
        values = np.asarray(
            functools.reduce(lambda tree, name: tree[name], array.split("/"), params)
        )
        bound = 1 / math.sqrt(fan_in)
        assert 0.9 * bound < np.abs(values).max() <= bound, array
        assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.1), array
    assert float(params["embedding"]["channel"].std()) == pytest.approx(1, rel=0.1)
    np.testing.assert_array_equal(params["norm"]["scale"], np.ones(16))
    np.testing.assert_array_equal(params["norm"]["bias"], np.zeros(16))


@pytest.mark.parametrize("make_config", [ghn1, ghn2, mlp])
@pytest.mark.parametrize("decoder", ["conv", "mlp"])
def test_tiles_have_the_shapes_their_keys_promise(make_config, decoder):
    config = make_config(hidden_size=8, max_shape=(4, 4, 5, 5), num_classes=3, decoder=decoder)
    variables = draw_variables(config)
    requests = {TileKey(kind, 3, 2): np.array([0, 7, 7], np.int32) for kind in KINDS}
    tiles = Hypernetwork(config).apply(
        variables, small_batch(), requests, method="embed_and_decode"
    )
    assert {key.kind: tile.shape for key, tile in tiles.items()} == {
        "kernel": (3, 3, 2, 4, 4),
        "depthwise": (3, 3, 2, 1, 4),
        "position": (3, 3, 2, 4),
        "vector": (3, 2, 4),
        "classifier_kernel": (3, 4, 3),
        "classifier_bias": (3, 3),
    }
    for tile in tiles.values():
        np.testing.assert_array_equal(tile[1], tile[2])


def test_output_and_input_channels_are_not_confused():
    config = ghn2(**SMALL)
    variables = draw_variables(config)
    requests = {
        TileKey("kernel"): np.zeros(1, np.int32),
        TileKey("position", 2, 2): np.zeros(1, np.int32),
    }
    tiles = Hypernetwork(config).apply(
        variables, small_batch(), requests, method="embed_and_decode"
    )
    assert tiles[TileKey("kernel")].shape == (1, 1, 1, 4, 6)
    assert tiles[TileKey("position", 2, 2)].shape == (1, 2, 2, 4)


def test_scales_and_biases_are_bounded_only_where_parameters_are_normalised():
    requests = {TileKey("vector"): np.arange(10, dtype=np.int32)}

    def vectors(config):
        variables = draw_variables(config)
        variables = jax.tree.map(lambda x: 30 * x, variables)
        return Hypernetwork(config).apply(
            variables, small_batch(), requests, method="embed_and_decode"
        )[TileKey("vector")]

    bounded = vectors(ghn2(**SMALL))
    assert float(bounded[:, 0].min()) >= 0 and float(bounded[:, 0].max()) <= 2
    assert float(jnp.abs(bounded[:, 1]).max()) <= 1
    assert float(jnp.abs(vectors(ghn1(**SMALL))).max()) > 2


def test_gradients_reach_every_parameter():
    config = ghn2(**SMALL)
    variables = draw_variables(config)
    requests = {TileKey(kind, 5, 5): np.arange(10, dtype=np.int32) for kind in KINDS}

    def loss(variables):
        tiles = Hypernetwork(config).apply(
            variables, small_batch(), requests, method="embed_and_decode"
        )
        return sum(jnp.sum(tile**2) for tile in tiles.values())

    gradients = jax.jit(jax.grad(loss))(variables)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert bool(jnp.any(gradient != 0)), jax.tree_util.keystr(path)
        assert bool(jnp.all(jnp.isfinite(gradient))), jax.tree_util.keystr(path)


def test_one_program_serves_all_graphs_of_the_same_padded_size():
    config = ghn2(**SMALL)
    variables = draw_variables(config)
    apply = jax.jit(functools.partial(Hypernetwork(config).apply, method="embed_and_decode"))
    batch = small_batch()
    for graph in range(3):
        other = batch._replace(primitive=(batch.primitive + graph) % 15)
        apply(variables, other, {TileKey("vector"): np.array([graph], np.int32)})
    assert apply._cache_size() == 1


def test_unknown_kind_is_named():
    config = ghn1(**SMALL)
    variables = draw_variables(config)
    requests = {TileKey("kernels"): np.zeros(1, np.int32)}
    with pytest.raises(ValueError, match="'kernels', expected one of kernel, depthwise, position"):
        decode(config, variables, requests)
