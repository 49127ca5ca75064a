"""The work of one device in a step: predict, run the target networks, pull gradients back.

It takes the GHN's parameters on the device, architectures and images. It returns a loss for each
architecture and, on the device, the gradients of the GHN's parameters summed over architectures.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.arrays import PyTree
from ghn_jax.engine.blockwise import BlockwiseEngine, LossAndGrads
from ghn_jax.graphs import ArchGraph
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.parallel.clock import Clock
from ghn_jax.targets.plan import Plan
from ghn_jax.tasks import Batch, ParameterTerm

_LOGGER = logging.getLogger(__name__)


class Work(NamedTuple):
    """The architectures that one device works on in a step.

    Attributes:
        positions: Positions of the architectures in the meta batch, in ascending order.
        plans: The lowered architectures.
        graphs: The graphs of the architectures.
        capacity: Number of graphs to which batches are padded.
    """

    positions: tuple[int, ...]
    plans: tuple[Plan, ...]
    graphs: tuple[ArchGraph, ...]
    capacity: int


class ReplicaResult(NamedTuple):
    """The result of one device in a step.

    Attributes:
        grads: Gradients of the GHN's parameters, summed over the finite architectures, on the
            device; None if no architecture is finite.
        losses: float32 losses of the architectures, in the order of `Work.positions`.
        finite: Whether each architecture's loss and gradient are finite.
        seconds: Duration of each phase of the step, by name.
    """

    grads: PyTree | None
    losses: np.ndarray
    finite: np.ndarray
    seconds: dict[str, float]


class Replica:
    """A device with its predictor and its engine.

    Args:
        device: The device that does the work.
        predictor: Predicts parameters, with programs on the device.
        engine: Runs target networks, with programs on the device.
        parameter_terms: Terms of the predicted parameters that are added to each network's loss.
    """

    def __init__(
        self,
        device: jax.Device,
        predictor: Predictor,
        engine: BlockwiseEngine,
        parameter_terms: Sequence[ParameterTerm] = (),
    ) -> None:
        self.device = device
        self.predictor = predictor
        self.engine = engine
        self.parameter_terms = parameter_terms

    def loss_and_grads(
        self,
        ghn_params: PyTree,
        work: Work,
        batch: Batch,
        dropout_keys: Sequence[jax.Array] | None = None,
    ) -> ReplicaResult:
        """Compute all losses and the sum of gradients, splitting the work if memory runs out.

        Args:
            ghn_params: The GHN's parameters, on the device.
            work: The architectures, at least one.
            batch: Normalised images (B, S, S, C) and their labels.
            dropout_keys: One random key per architecture; None runs the heads without dropout.

        Returns:
            The result.

        Raises:
            jax.errors.JaxRuntimeError: If memory runs out for a single architecture.
        """
        try:
            return self._compute_all(ghn_params, work, batch, dropout_keys)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error) or len(work.plans) == 1:
                raise
        # Not inside the handler, whose traceback would keep the arrays that did not fit alive.
        half = len(work.plans) // 2
        _LOGGER.warning(
            "out of memory on %s with %d architectures; going on with %d and %d",
            *(self.device, len(work.plans), half, len(work.plans) - half),
        )
        results = []
        for part in (slice(half), slice(half, None)):
            keys = None if dropout_keys is None else dropout_keys[part]
            capacity = -(-work.capacity // 2)
            parts = Work(work.positions[part], work.plans[part], work.graphs[part], capacity)
            results.append(self.loss_and_grads(ghn_params, parts, batch, keys))
        return _join(*results)

    def _compute_all(
        self,
        ghn_params: PyTree,
        work: Work,
        batch: Batch,
        dropout_keys: Sequence[jax.Array] | None,
    ) -> ReplicaResult:
        """Compute all architectures at the same time."""
        clock = Clock()
        prepared = self.predictor.prepare(work.graphs, work.capacity)
        target_params, pull_back = self.predictor.predict_with_pull_back(ghn_params, prepared)
        clock.lap("ghn_forward")
        batch = jax.device_put(batch, self.device)
        results = self.engine.loss_and_grads(work.plans, target_params, batch, dropout_keys)
        for term in self.parameter_terms:
            results = [
                _add_term(term(arrays), result)
                for arrays, result in zip(target_params, results, strict=True)
            ]
        losses = np.array([float(result.loss) for result in results], np.float32)
        finite = np.isfinite(losses)
        are_finite = _are_finite_on_host if self.device.platform == "cpu" else _are_finite_on_device
        places = np.flatnonzero(finite)
        finite[places] = are_finite([results[place].grads for place in places])
        clock.lap("targets")
        grads = None
        if finite.any():
            kept = [r.grads if ok else None for r, ok in zip(results, finite, strict=True)]
            grads = jax.block_until_ready(pull_back(kept))
        clock.lap("ghn_backward")
        return ReplicaResult(grads, losses, finite, clock.seconds)


def _add_term(term: tuple[Any, list[Any]], result: LossAndGrads) -> LossAndGrads:
    value, gradients = term
    pairs = zip(result.grads, gradients, strict=True)
    return LossAndGrads(result.loss + value, [grad + more for grad, more in pairs])


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Return whether a device ran out of memory, by the status code at the start of the message.

    JAX has no error class for this.
    """
    return str(error).startswith("RESOURCE_EXHAUSTED")


def _are_finite_on_host(grads: Sequence[Sequence[jax.Array]]) -> list[bool]:
    """Return for each architecture whether all its gradients are finite."""
    return [all(np.isfinite(np.asarray(array)).all() for array in arrays) for arrays in grads]


def _are_finite_on_device(grads: Sequence[Sequence[jax.Array]]) -> list[bool]:
    """Do the same on the device, and fetch one bit per architecture, all of them at the end."""
    bits = [functools.reduce(_stays_finite, arrays, np.bool_(True)) for arrays in grads]
    return [bool(bit) for bit in jax.device_get(bits)]


@jax.jit  # one short program per tensor shape
def _stays_finite(finite: jax.Array, array: jax.Array) -> jax.Array:
    return finite & jnp.isfinite(array).all()


def _join(one: ReplicaResult, other: ReplicaResult) -> ReplicaResult:
    grads = [result.grads for result in (one, other) if result.grads is not None]
    total = jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *grads) if grads else None
    seconds = {name: one.seconds[name] + other.seconds[name] for name in one.seconds}
    losses, finite = (np.concatenate(pair) for pair in zip(one[1:3], other[1:3], strict=True))
    return ReplicaResult(total, losses, finite, seconds)
