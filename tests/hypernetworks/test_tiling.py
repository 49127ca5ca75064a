"""Cutting parameters from tiles, and its transpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.hypernetworks.decoders import ConvDecoder
from ghn_jax.hypernetworks.tiling import (
    TileKey,
    request_key,
    tile_parameter,
    tile_parameters,
    tile_slices,
    untile_gradients,
)

# (tile's shape, tensor's shape, role): cropped, repeated, both, not a multiple, and of every role.
CASES = [
    ((3, 3, 4, 6), (3, 3, 2, 3), "kernel"),
    ((1, 1, 4, 6), (8, 18), "kernel"),
    ((1, 1, 4, 6), (3, 7), "kernel"),
    ((1, 7, 4, 6), (1, 7, 9, 13), "kernel"),
    ((5, 5, 1, 6), (5, 5, 1, 16), "depthwise"),
    ((2, 6), (4,), "scale"),
    ((2, 6), (15,), "scale"),
    ((2, 6), (12,), "bias"),
    ((4, 3), (10, 3), "classifier_kernel"),
    ((4, 3), (2, 5), "classifier_kernel"),
    ((3,), (3,), "classifier_bias"),
    ((11, 11, 4), (1, 11, 11, 10), "position"),
]


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cut(tile, shape, role, factor, xp):
    return tile_parameter(tile, shape, tile_slices(tile.shape, shape, role), factor, xp)


def test_small_kernel_by_hand():
    tile = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    found = cut(tile, (3, 3), "kernel", 10.0, np)
    np.testing.assert_array_equal(found, [[0, 10, 0], [20, 30, 20], [0, 10, 0]])


def test_small_gradient_by_hand():
    gradient = np.arange(9, dtype=np.float32).reshape(3, 3)
    index = tile_slices((1, 1, 2, 2), (3, 3), "kernel")
    found = untile_gradients(gradient[None], index, 10.0, np)
    np.testing.assert_array_equal(found[0], [[160, 80], [80, 40]])


@pytest.mark.parametrize(("tile_shape", "shape", "role"), CASES)
@pytest.mark.parametrize("xp", [np, jnp])
def test_every_element_is_the_tiles_at_the_position_modulo_what_was_cropped(
    tile_shape, shape, role, xp
):
    tile = random(tile_shape)
    source = {"scale": tile[:1], "bias": tile[1:]}.get(role, tile)
    source = source.reshape((1,) * (len(shape) - source.ndim) + source.shape)
    source = source.reshape(source.shape[-len(shape) :])
    modulus = [min(a, b) for a, b in zip(source.shape, shape, strict=True)]
    expected = np.empty(shape, np.float32)
    for index in np.ndindex(*shape):
        expected[index] = source[tuple(i % m for i, m in zip(index, modulus, strict=True))]
    found = cut(xp.asarray(tile), shape, role, 0.5, xp)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 0.5 * expected, rtol=1e-6)


@pytest.mark.parametrize(("tile_shape", "shape", "role"), CASES)
@pytest.mark.parametrize("xp", [np, jnp])
def test_untiling_is_the_transpose(tile_shape, shape, role, xp):
    tile, gradient = random(tile_shape), random(shape, seed=1)
    _, pull_back = jax.vjp(lambda tile: cut(tile, shape, role, 0.5, jnp), tile)
    (expected,) = pull_back(jnp.asarray(gradient))
    found = np.zeros(tile_shape, np.float32)
    index = tile_slices(tile_shape, shape, role)
    part = untile_gradients(xp.asarray(gradient)[None], index, 0.5, xp)[0]
    found[index] = np.asarray(part).reshape(found[index].shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_part_from_the_middle_by_hand():
    tile = np.arange(16, dtype=np.float32).reshape(4, 4, 1, 1)
    index = (slice(1, 3), slice(1, 3), slice(1), slice(1))  # as decoders may say that crop centres
    found = tile_parameter(tile, (2, 2, 1, 2), index, 1.0, np)
    np.testing.assert_array_equal(found[..., 0, 0], [[5, 6], [9, 10]])
    np.testing.assert_array_equal(found[..., 0, 1], [[5, 6], [9, 10]])
    total = untile_gradients(np.ones((1, 2, 2, 1, 2), np.float32), index, 1.0, np)
    np.testing.assert_array_equal(total, np.full((1, 2, 2, 1, 1), 2.0))


def test_many_tensors_are_cut_at_once():
    tiles, rows, shape = random((5, 3, 3, 4, 6)), np.array([4, 0, 4]), (3, 3, 9, 2)
    index = tile_slices((3, 3, 4, 6), shape, "kernel")
    found = tile_parameters(tiles, rows, shape, index, 0.5, np)
    np.testing.assert_array_equal(
        found, [cut(tiles[row], shape, "kernel", 0.5, np) for row in rows]
    )
    gradients = random((3, *shape), seed=1)
    found = untile_gradients(gradients, index, 0.5, np)
    one = lambda g: untile_gradients(g[None], index, 0.5, np)[0]  # noqa: E731
    np.testing.assert_array_equal(found, [one(gradient) for gradient in gradients])


def test_float64_stays_float64():
    assert cut(np.ones((2, 4)), (9,), "scale", 0.3, np).dtype == np.float64
    index = tile_slices((2, 4), (9,), "scale")
    assert untile_gradients(np.ones((1, 9)), index, 0.3, np).dtype == np.float64


@pytest.mark.parametrize(
    ("shape", "role", "expected"),
    [
        ((3, 3, 16, 32), "kernel", TileKey("kernel", 3, 3)),
        ((16, 32), "kernel", TileKey("kernel", 1, 1)),
        ((1, 7, 64, 64), "kernel", TileKey("kernel", 1, 7)),
        ((5, 5, 1, 64), "depthwise", TileKey("depthwise", 5, 5)),
        ((1, 14, 14, 64), "position", TileKey("position", 14, 14)),
        ((64,), "scale", TileKey("vector")),
        ((64,), "bias", TileKey("vector")),
        ((50, 10), "embedding", TileKey("kernel", 1, 1)),
        ((64, 10), "classifier_kernel", TileKey("classifier_kernel")),
        ((10,), "classifier_bias", TileKey("classifier_bias")),
    ],
)
def test_keys_of_every_role(shape, role, expected):
    assert request_key(shape, role) == expected


@pytest.mark.parametrize(
    ("channels", "bounds"),
    [((3, 64), (4, 0)), ((32, 33), (32, 0)), ((5, 2), (32, 4)), ((512, 512), (0, 0))],
)
def test_keys_can_be_bounded_to_the_channels_in_use(channels, bounds):
    found = request_key((3, 3, *channels), "kernel", (64, 64, 11, 11))
    assert found == TileKey("kernel", 3, 3, *bounds)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (TileKey("kernel", 3, 3), (9, 64 * 64)),
        (TileKey("kernel", 1, 7, 32, 0), (7, 32 * 64)),
        (TileKey("kernel", 13, 13), (121, 64 * 64)),
        (TileKey("depthwise", 5, 5), (25, 64)),
        (TileKey("position", 14, 14), (121, 64)),
        (TileKey("classifier_kernel"), (1, 64 * 64)),
    ],
)
def test_sizes_of_tiles_where_they_are_decoded(key, expected):
    assert ConvDecoder(32, (64, 64, 11, 11), 10).decoded_sizes(key) == expected


def test_unknown_role_is_named():
    with pytest.raises(ValueError, match="role is 'weight', expected one of kernel, depthwise"):
        request_key((3,), "weight")
