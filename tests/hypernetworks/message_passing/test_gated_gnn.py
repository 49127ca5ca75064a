"""The gated GNN and its hand-written adjoint against a per-node implementation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import draw_parameters

from ghn_jax.graphs import GraphBatch
from ghn_jax.hypernetworks.message_passing.gated_gnn import GatedGNN

SIZE = 8


def random_distances(num_graphs, num_nodes, seed=0):
    """Distances of random graphs: (B, N, N) uint8 [receiver, sender], nodes in order."""
    rng = np.random.default_rng(seed)
    distance = rng.integers(1, 9, (num_graphs, num_nodes, num_nodes))
    distance *= rng.random(distance.shape) < 0.4
    return np.tril(distance, -1).astype(np.uint8)


def as_batch(distance, num_visited=None):
    """A batch of which message passing reads the distances and which nodes there are."""
    num_graphs, num_nodes, _ = distance.shape
    num_visited = num_nodes if num_visited is None else num_visited
    node_mask = np.broadcast_to(np.arange(num_nodes) < num_visited, (num_graphs, num_nodes))
    nothing = np.zeros((num_graphs, num_nodes, 4), np.int32)
    return GraphBatch(nothing[..., 0], nothing, distance, node_mask)


def draw_weights(module, distance, dtype=np.float32):
    """Parameters larger than the initial ones, so that gates leave their linear range."""
    states = np.zeros((*distance.shape[:2], SIZE), np.float32)
    params = draw_parameters(module.init, states, as_batch(distance), seed=1, scale=2.0)["params"]
    return {name: weight.astype(dtype) for name, weight in params.items()}


def naive_gnn(params, states, distance, virtual_edges):
    """One graph, node by node, edge by edge, as the papers write it; also for complex numbers."""

    def relu(x):
        return np.where(x.real > 0, x, 0)

    def message(name, h):
        h = relu(h @ params[f"{name}_kernel_1"] + params[f"{name}_bias_1"])
        return relu(h @ params[f"{name}_kernel_2"] + params[f"{name}_bias_2"])

    def gru(m, h):
        a = (m @ params["gru_message_kernel"] + params["gru_message_bias"]).reshape(3, SIZE)
        b = (h @ params["gru_state_kernel"] + params["gru_state_bias"]).reshape(3, SIZE)
        reset = 1 / (1 + np.exp(-a[0] - b[0]))
        update = 1 / (1 + np.exp(-a[1] - b[1]))
        return (1 - update) * np.tanh(a[2] + reset * b[2]) + update * h

    h = list(states)
    order = range(len(h))
    for edges, nodes in ((distance, order), (distance.T, reversed(order))):
        for v in nodes:
            m = np.zeros_like(h[v])
            for u in np.flatnonzero(edges[v]):
                if edges[v, u] == 1:
                    m = m + message("mlp", h[u])
                if 1 < virtual_edges and edges[v, u] <= virtual_edges:
                    m = m + message("mlp_virtual", h[u]) / edges[v, u]
            h[v] = gru(m, h[v])
    return np.stack(h)


def without_edges_between_neighbors(distance, num):
    """Remove the edges within each group of consecutive nodes."""
    group = np.arange(distance.shape[1]) // num
    return np.where(group[:, None] == group, np.uint8(0), distance)


# Within a block; several blocks, the last one not full; chunks of blocks, and nodes left alone.
@pytest.mark.parametrize(
    ("virtual_edges", "num_nodes", "num_visited", "nodes_at_once", "reverse_only"),
    [(1, 9, 9, 1, True), (3, 9, 9, 1, True), (50, 9, 9, 1, True), (50, 70, 70, 1, True)]
    + [(50, 256, 200, 1, True), (50, 70, 70, 2, True), (50, 256, 200, 4, True)]
    + [(1, 9, 9, 1, False), (50, 9, 9, 1, False), (50, 70, 60, 1, False)],  # the plain sweep
)
def test_values_and_gradients_match_the_naive_implementation(
    x64, virtual_edges, num_nodes, num_visited, nodes_at_once, reverse_only
):
    module = GatedGNN(virtual_edges, nodes_at_once, reverse_only=reverse_only)
    distance = random_distances(2, num_nodes)
    if num_nodes > 32:  # about as many edges of each node
        distance[np.random.default_rng(7).random(distance.shape) > 20 / num_nodes] = 0
    distance = without_edges_between_neighbors(distance, nodes_at_once)
    params = draw_weights(module, distance[:, :9, :9], np.float64)
    rng = np.random.default_rng(2)
    params["states"], cotangent = rng.standard_normal((2, 2, num_nodes, SIZE))

    def loss(params):
        params = dict(params)
        states = params.pop("states")
        found = module.apply({"params": params}, states, as_batch(distance, num_visited))
        return jnp.sum(found * cotangent)

    def naive_loss(params):
        outputs = [
            [
                *naive_gnn(
                    params,
                    states[:num_visited],
                    edges[:num_visited, :num_visited],
                    virtual_edges,
                ),
                *states[num_visited:],
            ]
            for states, edges in zip(params["states"], distance, strict=True)
        ]
        return np.sum(np.array(outputs) * cotangent)

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    assert value.dtype == jnp.float64
    np.testing.assert_allclose(value, naive_loss(params), rtol=1e-12)
    for name, gradient in gradients.items():
        # Complex step: the derivative along a direction, exact to rounding.
        direction = rng.standard_normal(gradient.shape)
        moved = params | {name: params[name] + 1e-30j * direction}
        expected = naive_loss(moved).imag / 1e-30
        found = np.sum(np.asarray(gradient) * direction)
        np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=name)


def test_two_updates_of_a_lonely_node_by_hand():
    # Reset 1/2, update 3/4, candidate tanh(1/2 * 2 artanh(1/2)) = 1/2: twice h = 1/8 + 3h/4.
    params = {
        "mlp_kernel_1": np.zeros((4, 4)),
        "mlp_bias_1": np.zeros(4),
        "mlp_kernel_2": np.zeros((4, 4)),
        "mlp_bias_2": np.zeros(4),
        "gru_message_kernel": np.zeros((4, 12)),
        "gru_state_kernel": np.zeros((4, 12)),
        "gru_message_bias": np.zeros(12),
        "gru_state_bias": np.repeat([0.0, math.log(3.0), 2.0 * math.atanh(0.5)], 4),
    }
    params = {name: x.astype(np.float32) for name, x in params.items()}
    found = GatedGNN(1).apply(
        {"params": params}, np.ones((1, 1, 4), np.float32), as_batch(np.zeros((1, 1, 1), np.uint8))
    )
    np.testing.assert_allclose(found, np.full((1, 1, 4), 0.78125), rtol=1e-6)


@pytest.mark.parametrize("reverse_only", [True, False])
def test_padding_and_other_graphs_change_nothing(reverse_only):
    module = GatedGNN(50, reverse_only=reverse_only)
    distance = random_distances(1, 7)
    params = draw_weights(module, distance)
    rng = np.random.default_rng(3)
    states = rng.standard_normal((3, 12, SIZE)).astype(np.float32)
    padded = np.zeros((3, 12, 12), np.uint8)
    padded[0, :7, :7] = distance[0]
    padded[1:] = random_distances(2, 12, seed=5)

    def loss(params, states, distance):
        nodes = module.apply({"params": params}, states, as_batch(distance))[0, :7]
        return jnp.sum(jnp.sin(nodes)), nodes

    grad_fn = jax.jit(jax.grad(loss, has_aux=True))
    small_grads, small = grad_fn(params, states[:1, :7], distance)
    large_grads, large = grad_fn(params, states, padded)
    np.testing.assert_allclose(small, large, rtol=0, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        small_grads,
        large_grads,
    )


def test_virtual_edges_are_cut_off_at_their_longest_distance():
    far, near = random_distances(1, 6), random_distances(1, 6)
    near[near > 4] = 0
    module = GatedGNN(4, reverse_only=True)
    params = draw_weights(module, far)
    states = np.random.default_rng(4).standard_normal((1, 6, SIZE)).astype(np.float32)
    np.testing.assert_array_equal(
        module.apply({"params": params}, states, as_batch(far)),
        module.apply({"params": params}, states, as_batch(near)),
    )


def test_nodes_at_once_have_to_divide_a_block():
    distance = random_distances(1, 9)
    states = np.zeros((1, 9, SIZE), np.float32)
    with pytest.raises(ValueError, match="nodes_at_once is 3, expected a divisor of 32"):
        GatedGNN(50, 3, reverse_only=True).init(jax.random.key(0), states, as_batch(distance))
