"""Decoders: parts of tiles are parts of the whole, and the formulas of the paper in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import draw_parameters

from ghn_jax.hypernetworks.decoders import ConvDecoder, MLPDecoder, VectorDecoder

MAX_SHAPE = (6, 6, 5, 5)
DECODERS = [ConvDecoder(4, MAX_SHAPE, 3), MLPDecoder(4, MAX_SHAPE, 3)]


def make(decoder):
    """Variables of a decoder and embeddings to decode, (2, 4)."""
    embeddings = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    variables = draw_parameters(decoder.init, embeddings, method="classifier_kernel")
    return variables, embeddings


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("decoder", DECODERS, ids=["conv", "mlp"])
def test_parts_of_a_tile_are_cut_from_the_whole(decoder):
    variables, embeddings = make(decoder)
    whole = decoder.apply(variables, embeddings, 5, 5, None, None, method="kernel")
    assert whole.shape == (2, 5, 5, 6, 6)

    def check(part, expected):
        np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-6)

    part = decoder.apply(variables, embeddings, 3, 1, None, None, method="kernel")
    check(part, whole[:, :3, :1])
    part = decoder.apply(variables, embeddings, 3, 3, 2, 4, method="kernel")
    check(part, whole[:, :3, :3, :2, :4])
    check(decoder.apply(variables, embeddings, 3, 3, method="depthwise"), whole[:, :3, :3, :1])
    check(decoder.apply(variables, embeddings, 4, 4, method="position"), whole[:, :4, :4, :, 0])


@pytest.mark.parametrize("decoder", DECODERS, ids=["conv", "mlp"])
def test_kernels_larger_than_the_tile_repeat_it(decoder):
    variables, embeddings = make(decoder)
    large = decoder.apply(variables, embeddings, 7, 9, None, None, method="kernel")
    whole = decoder.apply(variables, embeddings, 5, 5, None, None, method="kernel")
    assert large.shape == (2, 7, 9, 6, 6)
    np.testing.assert_allclose(large[:, :5, 5:], whole[:, :, :4], rtol=1e-5)
    np.testing.assert_allclose(large[:, 5:, :5], whole[:, :2], rtol=1e-5)


def test_convolutional_decoder_computes_the_published_formula():
    decoder = DECODERS[0]
    variables, embeddings = make(decoder)
    p = jax.tree.map(np.asarray, variables["params"])
    pixel = relu(embeddings @ p["kernel_1"][:, 2, 1] + p["bias_1"][2, 1])
    pixel = relu(pixel @ p["kernel_2"] + p["bias_2"])
    assert pixel.shape == (2, 32)
    expected = np.einsum("gc,cio->gio", pixel, p["kernel_3"]) + p["bias_3"]
    found = decoder.apply(variables, embeddings, 3, 3, None, None, method="kernel")
    np.testing.assert_allclose(found[:, 2, 1], expected, rtol=1e-4, atol=1e-6)


def test_convolutional_classifier_is_linear_over_the_tiles_output_channels():
    decoder = DECODERS[0]
    variables, embeddings = make(decoder)
    p = jax.tree.map(np.asarray, variables["params"]["classifier"])
    tile = decoder.apply(variables, embeddings, 1, 1, None, None, method="kernel")[:, 0, 0]
    expected = np.einsum("gio,ok->gik", relu(np.asarray(tile)), p["kernel"]) + p["bias"]
    found = decoder.apply(variables, embeddings, method="classifier_kernel")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_mlp_decoder_computes_the_published_formula():
    decoder = DECODERS[1]
    variables, embeddings = make(decoder)
    p = jax.tree.map(np.asarray, variables["params"])
    hidden = relu(embeddings @ p["hidden"]["kernel"] + p["hidden"]["bias"])
    assert hidden.shape == (2, 8)
    tile = np.einsum("gc,chwio->ghwio", hidden, p["kernel_2"]) + p["bias_2"]
    found = decoder.apply(variables, embeddings, 5, 5, None, None, method="kernel")
    np.testing.assert_allclose(found, tile, rtol=1e-4, atol=1e-6)
    # The classifier is a layer of its own on the same hidden units, reshaped to (K, I).
    kernels = hidden @ p["classifier"]["kernel"] + p["classifier"]["bias"]
    found = decoder.apply(variables, embeddings, method="classifier_kernel")
    assert found.shape == (2, 6, 3)
    np.testing.assert_allclose(found[:, 4, 1], kernels[:, 1 * 6 + 4], rtol=1e-4, atol=1e-6)


def test_vector_decoder_computes_the_published_formula():
    decoder = VectorDecoder(4, 6, 3)
    embeddings = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    variables = draw_parameters(decoder.init, embeddings, method="classifier_bias")
    p = jax.tree.map(np.asarray, variables["params"])
    first, second = p["mlp"]["layer_1"], p["mlp"]["layer_2"]
    hidden = relu(embeddings @ first["kernel"] + first["bias"])
    rows = (hidden @ second["kernel"] + second["bias"]).reshape(2, 2, 6)
    found = decoder.apply(variables, embeddings, method="vector")
    np.testing.assert_allclose(found, rows, rtol=1e-4, atol=1e-6)
    biases = relu(rows[:, 1]) @ p["classifier"]["kernel"] + p["classifier"]["bias"]
    found = decoder.apply(variables, embeddings, method="classifier_bias")
    np.testing.assert_allclose(found, biases, rtol=1e-4, atol=1e-6)


def test_decoders_follow_the_dtype_of_their_parameters(x64):
    variables, embeddings = make(DECODERS[0])
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
    embeddings = embeddings.astype(np.float64)
    found = DECODERS[0].apply(variables, embeddings, method="classifier_kernel")
    assert found.dtype == jnp.float64
