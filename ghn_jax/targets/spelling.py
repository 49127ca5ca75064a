"""Which spelling of the operations a network computes with: chosen once, where it is made.

- `operations.NATIVE`: what XLA offers. The default of every module, and what tracing reads.
- `default_operations()`: fast on the backend, and every transformation of JAX passes through it:
  jvp, vmap, derivatives of any order. What `GHN.predict` and `models.build` make networks with.
- `operations_with_adjoints()`: with gradients written by hand, which keep less and read less often.
  For programs of our own that take first gradients and nothing else: JAX cannot push a tangent
  through them.

XLA's CPU backend is slow in corners that architectures visit often; `cpu` says where, and does
otherwise there. The norm's and the attention's gradients suit every backend.
"""

import dataclasses
from typing import TypeVar

import flax.linen as nn
import jax

from ghn_jax.targets.cpu import attention, convolution, normalization, pooling
from ghn_jax.targets.operations import NATIVE, Operations

_Module = TypeVar("_Module", bound=nn.Module)

_CPU = dataclasses.replace(
    NATIVE,
    convolve=convolution.convolve,
    convolve_depthwise=convolution.convolve_depthwise,
    max_pool=pooling.max_pool,
)
_NATIVE_WITH_ADJOINTS = dataclasses.replace(
    NATIVE,
    batch_norm=normalization.batch_norm_with_adjoint,
    attend=attention.attend_with_adjoint,
)
_CPU_WITH_ADJOINTS = dataclasses.replace(
    _NATIVE_WITH_ADJOINTS,
    convolve=convolution.convolve_with_adjoint,
    convolve_depthwise=convolution.convolve_depthwise_with_adjoint,
    max_pool=pooling.max_pool_with_adjoint,
)


def default_operations(backend: str | None = None) -> Operations:
    """The operations as a backend is fast at, open to every transformation of JAX.

    Args:
        backend: "cpu", "gpu" or "tpu"; None is JAX's default.
    """
    return _CPU if (backend or jax.default_backend()) == "cpu" else NATIVE


def operations_with_adjoints(backend: str | None = None) -> Operations:
    """The operations as a backend is fastest at, for values and first gradients only.

    Args:
        backend: "cpu", "gpu" or "tpu"; None is JAX's default.
    """
    is_cpu = (backend or jax.default_backend()) == "cpu"
    return _CPU_WITH_ADJOINTS if is_cpu else _NATIVE_WITH_ADJOINTS


def with_operations(module: _Module, operations: Operations) -> _Module:
    """A copy of a module that computes with other operations; itself, if it has none to choose."""
    return module.clone(operations=operations) if has_operations(module) else module


def has_operations(module: nn.Module) -> bool:
    """Whether a module has the field `operations`, like all that compute with them."""
    return isinstance(getattr(module, "operations", None), Operations)
