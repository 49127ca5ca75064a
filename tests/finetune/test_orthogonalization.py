"""The QR step by hand, its property, and its errors."""

import numpy as np
import pytest

from ghn_jax.finetune.orthogonalization import orthogonalize


def gram_schmidt(matrix):
    """Orthonormal columns, one after the other: the Q whose R has a positive diagonal."""
    columns = []
    for column in matrix.T:
        for other in columns:
            column = column - (column @ other) * other
        columns.append(column / np.linalg.norm(column))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("shape", [(3, 3, 2, 5), (1, 1, 4, 9), (6, 4), (4, 6), (3, 3, 1, 12)])
def test_equals_gram_schmidt_in_pytorchs_order(shape):
    kernel = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    # (out, in, kh, kw) flattened to (out, rest).
    order = (len(shape) - 1, len(shape) - 2, *range(len(shape) - 2))
    by_output = kernel.transpose(order).astype(np.float64)
    matrix = by_output.reshape(shape[-1], -1)
    is_wide = matrix.shape[0] < matrix.shape[1]
    expected = gram_schmidt(matrix.T).T if is_wide else gram_schmidt(matrix)
    expected = expected.reshape(by_output.shape).transpose(np.argsort(order))
    found = orthogonalize(kernel)
    assert found.shape == shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_by_hand():
    # One output reading two inputs: the direction stays, the length becomes 1.
    np.testing.assert_allclose(orthogonalize(np.array([[3.0], [4.0]], np.float32)), [[0.6], [0.8]])
    # Orthogonal already.
    np.testing.assert_allclose(orthogonalize(np.eye(3, dtype=np.float32)), np.eye(3), atol=1e-7)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"kernel has shape \(3,\), expected \(..., in, out\)"):
        orthogonalize(np.zeros(3, np.float32))
