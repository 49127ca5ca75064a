"""The programs that train and evaluate one network, compiled once for any number of runs.

In: a Flax module and how it is trained. Out: jitted functions of its state, images and labels, in
which the learning rate, the seed and the drop path rate are data.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ghn_jax.arrays import PyTree
from ghn_jax.finetune.config import NetworkTrainingConfig
from ghn_jax.targets.spelling import operations_with_adjoints, with_operations
from ghn_jax.tasks.classification import cross_entropy


class NetworkState(NamedTuple):
    """What a step changes: parameters, other collections (running statistics), optimizer state."""

    params: PyTree
    collections: PyTree
    opt_state: PyTree


@dataclasses.dataclass(frozen=True)
class CallArguments:
    """How a module is called.

    Attributes:
        train: Keyword arguments for training.
        evaluate: Keyword arguments for evaluation, with batch norm using running statistics.
        has_drop_path: Whether the module's call takes `drop_path_rate`.
    """

    train: Mapping[str, Any]
    evaluate: Mapping[str, Any]
    has_drop_path: bool


def call_arguments(module: nn.Module) -> CallArguments:
    """Find the arguments that tell a module whether it is being trained.

    Args:
        module: A module whose call takes `train`, `use_running_average`, `deterministic`, or none
            of them.

    Returns:
        The arguments for training and for evaluation.
    """
    names = inspect.signature(type(module).__call__).parameters
    train: dict[str, Any] = {}
    evaluate: dict[str, Any] = {}
    if "train" in names:
        train["train"], evaluate["train"] = True, False
    for name in ("use_running_average", "deterministic"):
        if name in names:
            train[name], evaluate[name] = False, True
    return CallArguments(train, evaluate, "drop_path_rate" in names)


class NetworkPrograms:
    """Jitted functions of one network.

    Args:
        module: (B, S, S, C) images -> (B, K) logits; during training possibly a pair with the
            logits of an auxiliary head.
        training: How the network is trained.
        optimizer: An optimizer with learning rate 1; updates are multiplied by the step's rate.

    Attributes:
        arguments: How the module is called.
        init_opt_state: Parameters -> the optimizer's state.
        update: (state, images, labels, (rate, drop path), key, image size or None) -> (state,
            loss); reuses the memory of the state it is given.
        count_correct: (variables, images, labels, mask) -> number of correct ones under the mask.
        batch_statistics: (variables, images, fill) -> batch norm's running statistics after one
            update, starting from statistics that all equal `fill`.
    """

    def __init__(
        self,
        module: nn.Module,
        training: NetworkTrainingConfig,
        optimizer: optax.GradientTransformation,
    ) -> None:
        # Only first derivatives, in reverse mode, are taken here.
        self.module = module = with_operations(module, operations_with_adjoints())
        self.arguments = call_arguments(module)
        self._training, self._optimizer = training, optimizer
        self.init_opt_state = jax.jit(optimizer.init)
        self.update = jax.jit(self._update, static_argnums=5, donate_argnums=0)
        self.count_correct = jax.jit(self._count_correct)
        self.batch_statistics = jax.jit(self._batch_statistics)

    def _update(
        self,
        state: NetworkState,
        images: jax.Array,
        labels: jax.Array,
        scalars: jax.Array,
        key: jax.Array,
        size: int | None,
    ) -> tuple[NetworkState, jax.Array]:
        training = self._training
        rate, drop_path = scalars
        if size is not None and images.shape[1:3] != (size, size):
            shape = (images.shape[0], size, size, images.shape[3])
            images = jax.image.resize(images, shape, "bilinear")
        arguments = dict(self.arguments.train)
        if self.arguments.has_drop_path:
            arguments["drop_path_rate"] = drop_path
        keys = dict(zip(("dropout", "drop_path"), jax.random.split(key), strict=True))

        def loss_fn(params: PyTree) -> tuple[jax.Array, PyTree]:
            outputs, new = self.module.apply(
                {"params": params, **state.collections},
                images,
                mutable=list(state.collections),
                rngs=keys,
                **arguments,
            )
            logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
            smoothing = training.label_smoothing
            loss = cross_entropy(logits, labels, smoothing)
            for more in auxiliary:
                loss += training.auxiliary_weight * cross_entropy(more, labels, smoothing)
            return loss, new

        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p + rate * u, state.params, updates)
        return NetworkState(params, {**state.collections, **new}, opt_state), loss

    def _count_correct(
        self, variables: PyTree, images: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> jax.Array:
        logits = self.module.apply(variables, images, **self.arguments.evaluate)
        logits = logits[0] if isinstance(logits, tuple) else logits
        return jnp.sum((jnp.argmax(logits, axis=-1) == labels) & mask)

    def _batch_statistics(self, variables: PyTree, images: jax.Array, fill: float) -> PyTree:
        stats = jax.tree.map(lambda x: jnp.full_like(x, fill), variables["batch_stats"])
        keys = {name: jax.random.key(0) for name in ("dropout", "drop_path")}
        _, new = self.module.apply(
            {**variables, "batch_stats": stats},
            images,
            mutable=["batch_stats"],
            rngs=keys,
            **self.arguments.train,
        )
        return new["batch_stats"]


def check_image_sizes(module: nn.Module, sizes: Sequence[int], num_channels: int) -> None:
    """Check that a network's parameters do not depend on the size of its images.

    Args:
        module: The network.
        sizes: The size of the data set's images, in pixels, followed by `training.image_sizes`.
        num_channels: Number of channels of the images.

    Raises:
        ValueError: If the network fails on a size, or its parameters differ in shape.
    """
    shapes = []
    for size in sizes if len(sizes) > 1 else ():
        images = jax.ShapeDtypeStruct((1, size, size, num_channels), np.float32)
        try:
            init = jax.eval_shape(module.init, jax.random.key(0), images)
            shapes.append(jax.tree.map(lambda leaf: leaf.shape, init["params"]))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"training.image_sizes has {size}, on which the network fails: {error}"
            ) from error
        if shapes[-1] != shapes[0]:
            raise ValueError(
                f"training.image_sizes has {size}, for which parameters of a"
                f" {type(module).__name__} have other shapes than for {sizes[0]}, expected"
                " a network whose parameters do not depend on the size of its images"
            )


def as_state(variables: PyTree) -> NetworkState:
    """Split variables into parameters and other collections, without optimizer state."""
    others = {name: value for name, value in variables.items() if name != "params"}
    return NetworkState(variables["params"], others, None)


def to_variables(state: NetworkState) -> PyTree:
    """Join parameters and other collections into variables, as numpy arrays."""
    return jax.tree.map(np.asarray, {"params": state.params, **state.collections})
