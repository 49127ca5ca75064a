"""Make a predicted kernel orthogonal (GHN-orth: Knyazev, ICML 2022 workshop, arXiv 2207.10049).

A kernel in Flax's layout -> a kernel of the same shape whose matrix (out, rest) is orthogonal: the
Q of a QR decomposition whose R has a positive diagonal (docs/method.md, 'Fine-tuning protocol').
"""

import jax
import jax.numpy as jnp


def as_tall_matrix(kernel: jax.Array) -> tuple[jax.Array, bool]:
    """Reshape a kernel to the matrix that the original decomposes.

    Args:
        kernel: (kh, kw, in, out), or (in, out) for a linear layer.

    Returns:
        The matrix (out, in kh kw), in PyTorch's order of elements, transposed if it is wider than
        tall; and whether it was transposed.

    Raises:
        ValueError: If the kernel has fewer than two axes.
    """
    if kernel.ndim < 2:
        raise ValueError(f"kernel has shape {kernel.shape}, expected (..., in, out)")
    by_output = jnp.moveaxis(kernel, (-1, -2), (0, 1))  # (out, in, kh, kw)
    matrix = by_output.reshape(by_output.shape[0], -1)
    is_wide = matrix.shape[0] < matrix.shape[1]
    return (matrix.T if is_wide else matrix), is_wide


@jax.jit
def orthogonalize(kernel: jax.Array) -> jax.Array:
    """Replace a kernel by the orthogonal factor of its QR decomposition.

    Args:
        kernel: (kh, kw, in, out), or (in, out) for a linear layer.

    Returns:
        A kernel of the same shape. Its columns, one per output, are orthonormal if there are at
        most as many outputs as inputs to each; otherwise its rows are.

    Raises:
        ValueError: If the kernel has fewer than two axes.
    """
    # QR orthogonalises column by column, so its result depends on the order of the columns.
    matrix, is_wide = as_tall_matrix(kernel)
    q, r = jnp.linalg.qr(matrix)
    q = q * jnp.sign(jnp.diagonal(r))[None, :]
    by_output = (q.T if is_wide else q).reshape(
        kernel.shape[-1], kernel.shape[-2], *kernel.shape[:-2]
    )
    return jnp.moveaxis(by_output, (0, 1), (-1, -2))
