"""GCN and GAT on jraph's layers against their formulas, node by node."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import draw_parameters

from ghn_jax.graphs import GraphBatch
from ghn_jax.hypernetworks.message_passing.gat import GAT
from ghn_jax.hypernetworks.message_passing.gcn import GCN

SIZE = 8
EDGES = ((0, 1), (1, 2), (0, 2), (2, 3))


def make_batch(edges, num_nodes, num_padding=0):
    """One graph, and padding: (sender, receiver) pairs, -1 on padding."""
    size = num_nodes + num_padding
    distance = np.zeros((1, size, size), np.uint8)
    for sender, receiver in edges:
        distance[0, receiver, sender] = 1
    rows = np.full((1, size * 2, 2), -1, np.int32)
    rows[0, : len(edges)] = edges
    nothing = np.zeros((1, size, 4), np.int32)
    node_mask = (np.arange(size) < num_nodes)[None]
    return GraphBatch(nothing[..., 0], nothing, distance, node_mask, rows)


def neighbors(node):
    """In either direction, and the node itself."""
    near = [edge[1 - edge.index(node)] for edge in EDGES if node in edge]
    return [*near, node]


def naive_gcn(params, h):
    for index in (1, 2):
        layer = params[f"layer_{index}"]
        h = h @ layer["kernel"] + layer["bias"]
        degree = [len(neighbors(v)) for v in range(len(h))]
        h = np.stack(
            [
                sum(h[u] / np.sqrt(degree[u] * degree[v]) for u in neighbors(v))
                for v in range(len(h))
            ]
        )
        h = np.maximum(h, 0)
    return h


def naive_gat(params, h):
    for index in (1, 2):
        layer = params[f"layer_{index}"]
        w = (h @ layer["kernel"] + layer["bias"]).reshape(len(h), 4, 2)
        p, q = params[f"sender_{index}"], params[f"receiver_{index}"]
        rows = []
        for v in range(len(h)):
            logits = np.stack([(w[u] * p).sum(-1) + (w[v] * q).sum(-1) for u in neighbors(v)])
            logits = np.exp(np.where(logits > 0, logits, 0.2 * logits))
            weights = logits / logits.sum(0)
            rows.append(sum(a[:, None] * w[u] for a, u in zip(weights, neighbors(v), strict=True)))
        h = np.maximum(np.stack(rows).reshape(len(h), SIZE), 0)
    return h


@pytest.mark.parametrize(("module", "naive"), [(GCN(), naive_gcn), (GAT(), naive_gat)])
def test_is_its_formula_with_and_without_padding(module, naive):
    batch = make_batch(EDGES, 4)
    rng = np.random.default_rng(0)
    nodes = rng.standard_normal((1, 4, SIZE)).astype(np.float32)
    variables = draw_parameters(module.init, nodes, batch)
    expected = naive(variables["params"], nodes[0])
    apply = jax.jit(module.apply)
    np.testing.assert_allclose(apply(variables, nodes, batch)[0], expected, rtol=1e-5, atol=1e-6)
    padded = np.concatenate([nodes, rng.standard_normal((1, 3, SIZE)).astype(np.float32)], axis=1)
    found = apply(variables, padded, make_batch(EDGES, 4, 3))[0, :4]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda v: jnp.sum(module.apply(v, nodes, batch) ** 2))(variables)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_errors():
    batch = make_batch(EDGES, 4)
    nodes = np.zeros((1, 4, SIZE), np.float32)
    with pytest.raises(ValueError, match="num_heads is 3, expected a divisor of 8"):
        GAT(num_heads=3).init(jax.random.key(0), nodes, batch)
    with pytest.raises(ValueError, match="edges is missing, .*sets `needs_edges = True`"):
        GCN().init(jax.random.key(0), nodes, batch._replace(edges=None))
