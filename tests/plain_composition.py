"""A GHN's loss written plainly: no padding, no requests, no shared programs, to compare with."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.architectures import Architecture, Genotype
from ghn_jax.graphs import GraphBatch
from ghn_jax.hypernetworks.embedding import shape_vocabulary
from ghn_jax.hypernetworks.model import Hypernetwork
from ghn_jax.hypernetworks.tiling import request_key, tile_parameter, tile_slices
from ghn_jax.programs.cache import cpu_compiler_options
from ghn_jax.targets.network import TargetNetwork, params_tree
from ghn_jax.targets.plan import lower


def plain_inputs(config, graph):
    """One graph without padding; every kind of tile of every node."""
    vocabulary = shape_vocabulary(config.num_classes, config.max_shape[2])
    batch = GraphBatch(
        primitive=graph.primitive[None],
        shape_index=vocabulary.lookup(graph.shape)[None],
        distance=graph.distance_matrix()[None],
        node_mask=np.ones((1, graph.num_nodes), bool),
    )
    keys = {request_key(tensor.shape, tensor.role) for tensor in graph.tensors}
    return batch, {key: np.arange(graph.num_nodes) for key in sorted(keys)}


def compose(config, params, graph):
    """Predict parameters in a traced function: every tensor reads its node's tile."""
    apply = Hypernetwork(config).apply
    tiles = apply({"params": params}, *plain_inputs(config, graph), method="embed_and_decode")
    arrays = []
    for tensor in graph.tensors:
        factor = 1.0
        if config.normalize_parameters and len(tensor.shape) > 1 and tensor.role != "position":
            # The original goes by the shape: the stem of grey images is taken for depthwise, too.
            is_depthwise = len(tensor.shape) == 4 and tensor.shape[2] == 1
            no_relu = is_depthwise or tensor.shape[:2] == (1, 7)
            factor = math.sqrt((1 if no_relu else 2) / math.prod(tensor.shape[:-1]))
        tile = tiles[request_key(tensor.shape, tensor.role)][tensor.node]
        index = tile_slices(tile.shape, tensor.shape, tensor.role)
        arrays.append(tile_parameter(tile, tensor.shape, index, factor))
    return arrays


def network_loss(plan, arrays, images, labels):
    logits = TargetNetwork(plan).apply({"params": params_tree(plan, arrays)}, images)
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])


def one_cell(*operations, **fields):
    """A network that compiles fast, of 16 channels where tiles have 8."""
    pairs = tuple(zip(operations, (0, 1), strict=True))
    small = {"num_cells": 1, "channels": 16, "preprocess": False, "channel_multiplier": 1}
    return lower(Architecture(Genotype(pairs, (2,), pairs, (2,)), **small, **fields), 8, 10)


def jit(fn):
    """Compile fast what runs once."""
    options = {**cpu_compiler_options(), "xla_backend_optimization_level": 0}
    return jax.jit(fn, compiler_options=options)
