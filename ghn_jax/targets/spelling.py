"""The spellings of the operations; a network gets one of them when it is made.

- `operations.NATIVE` uses XLA's own operations. It is the default of every module, and what
  tracing reads.
- `default_operations()` is fast on the backend and supports every JAX transformation: jvp, vmap,
  derivatives of any order. `GHN.predict` and `models.build` make networks with it.
- `operations_with_adjoints()` has handwritten gradients, which store less and make fewer passes
  over memory. It is for our own programs, which only take first derivatives: JAX cannot push a
  tangent through it.

XLA's CPU backend is slow in some cases that architectures hit often; `cpu` says which, and computes
those differently. The handwritten gradients of batch norm and attention suit every backend.
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
    """Return the operations that are fast on a backend and support every JAX transformation.

    Args:
        backend: "cpu", "gpu" or "tpu"; None means JAX's default backend.

    Returns:
        The operations.
    """
    return _CPU if (backend or jax.default_backend()) == "cpu" else NATIVE


def operations_with_adjoints(backend: str | None = None) -> Operations:
    """Return the operations that are fastest on a backend, for values and first gradients only.

    Args:
        backend: "cpu", "gpu" or "tpu"; None means JAX's default backend.

    Returns:
        The operations.
    """
    is_cpu = (backend or jax.default_backend()) == "cpu"
    return _CPU_WITH_ADJOINTS if is_cpu else _NATIVE_WITH_ADJOINTS


def with_operations(module: _Module, operations: Operations) -> _Module:
    """Return a copy of a module that uses other operations, or the module if it has no choice."""
    return module.clone(operations=operations) if has_operations(module) else module


def has_operations(module: nn.Module) -> bool:
    """Return whether a module has a field `operations`, as every module that uses them does."""
    return isinstance(getattr(module, "operations", None), Operations)
