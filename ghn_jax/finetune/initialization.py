"""The variables that fine-tuning starts from: random, predicted, or predicted and post-processed.

In: a Flax module, a GHN and the name of an initialisation. Out: the module's variables. The
classifier is predicted only if it stands for the same classes; otherwise the module initialises it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np

from ghn_jax.arrays import PyTree
from ghn_jax.configuration.validation import (
    check_choice,
    check_instance,
    check_number,
    check_positive_int,
    check_random_key,
)
from ghn_jax.finetune.config import CLASSIFIERS, INITS
from ghn_jax.finetune.layers import Kernels, Layer, layer_order
from ghn_jax.finetune.postprocessing import AUTO, Postprocessed, find_first_layer, postprocess
from ghn_jax.tracing import TracedNetwork, fill_variables, trace

if TYPE_CHECKING:
    from ghn_jax.pretrained import GHN


class NetworkInitializer:
    """Makes the variables of one network by any of the four initialisations.

    Args:
        module: A Flax linen module, (B, S, S, C) images -> (B, num_classes) logits.
        ghn: The GHN that predicts parameters; None if only 'random' is requested.
        image_size: Height and width S of the images, in pixels.
        num_classes: Number of classes of the network's classifier.
        num_channels: Number of channels C of the images.
        classifier: 'predicted', 'random', or 'auto' (predicted if the GHN has as many classes).
        noise_beta: Scale of the noise in 'ghn-noise' and 'ghn-orth'.
        first_layer: Number of the first layer that those two change, from 1, or 'auto'.
        call_arguments: Keyword arguments for the module's call.

    Raises:
        ValueError: If an argument is not as described, the module has no classifier with that many
            classes, or `first_layer` lies beyond the last layer before the classifier.
    """

    def __init__(
        self,
        module: nn.Module,
        ghn: GHN | None,
        image_size: int,
        num_classes: int,
        *,
        num_channels: int = 3,
        classifier: str = "auto",
        noise_beta: float = 3e-5,
        first_layer: int | str = AUTO,
        call_arguments: dict[str, Any] | None = None,
    ) -> None:
        check_instance("module", module, nn.Module, "a Flax linen module")
        check_positive_int("image_size", image_size)
        check_positive_int("num_classes", num_classes)
        check_positive_int("num_channels", num_channels)
        check_choice("classifier", classifier, CLASSIFIERS)
        check_number("noise_beta", noise_beta)
        if first_layer != AUTO and (type(first_layer) is not int or first_layer < 1):
            raise ValueError(f"first_layer is {first_layer!r}, expected 'auto' or a positive int")
        arguments = call_arguments or {}
        self._noise_beta, self._first_layer = noise_beta, first_layer
        images = jax.ShapeDtypeStruct((1, image_size, image_size, num_channels), np.float32)
        self._init = jax.jit(
            lambda key: module.init(key, np.zeros(images.shape, images.dtype), **arguments)
        )
        self.layers: list[Layer] = []
        self._predicted: PyTree = None
        if ghn is None:
            return
        traced = trace(
            module,
            images,
            num_classes=num_classes,
            max_distance=ghn.config.virtual_edges,
            **arguments,
        )
        self.layers = layer_order(traced.graph, traced.views)
        if not any(layer.is_classifier for layer in self.layers):
            raise ValueError(
                f"architecture {type(module).__name__} has no classifier, expected its last linear"
                f" layer to have {num_classes} outputs, one for each class"
            )
        self.layers.sort(key=lambda layer: layer.is_classifier)  # stable; puts the classifier last
        find_first_layer(first_layer, len(self.layers))
        same = ghn.config.num_classes == num_classes
        if classifier == "predicted" and not same:
            raise ValueError(
                f"classifier is 'predicted', expected 'random': the GHN predicts"
                f" {ghn.config.num_classes} classes, the data set has {num_classes}"
            )
        self._is_classifier_random = classifier == "random" or not same
        self._classifier_paths = {
            tensor.path
            for tensor in traced.graph.tensors
            if tensor.role in ("classifier_kernel", "classifier_bias")
        }
        self._traced: TracedNetwork = traced
        self._predict(ghn)

    def make(self, init: str, key: jax.Array) -> PyTree:
        """Make variables.

        Args:
            init: 'random', 'ghn', 'ghn-noise' or 'ghn-orth'.
            key: Random key for the noise and for the module's own initialiser, which supplies the
                classifier and whatever cannot be predicted.

        Returns:
            The variables, as numpy arrays.

        Raises:
            ValueError: If `init` is unknown, or needs a GHN and there is none.
        """
        check_choice("init", init, INITS)
        check_random_key("key", key)
        init_key, noise_key = jax.random.split(key)
        drawn = jax.tree.map(np.asarray, dict(self._init(init_key)))
        if init == "random":
            return drawn
        variables = self._with_drawn(drawn)
        if init == "ghn":
            return variables
        return self.postprocess(variables, init == "ghn-orth", noise_key).variables

    def postprocess(self, variables: PyTree, orthogonalize: bool, key: jax.Array) -> Postprocessed:
        """Post-process variables as 'ghn-orth' does, or 'ghn-noise' without `orthogonalize`."""
        return postprocess(
            variables,
            self.layers,
            orthogonalize=orthogonalize,
            noise_beta=self._noise_beta,
            first_layer=self._first_layer,
            key=key,
        )

    def read_kernels(self, variables: PyTree) -> list[np.ndarray]:
        """Read the kernels of `layers` from variables."""
        kernels = Kernels(variables, self.layers)
        return [kernels.read(number) for number in range(len(self.layers))]

    def _predict(self, ghn: GHN) -> None:
        graph = self._traced.graph
        (arrays,) = ghn.predictor.predict(ghn.ghn_params, ghn.predictor.prepare([graph]))
        _, self._predicted = self._traced.description.finish(fill_variables(self._traced, arrays))

    def _with_drawn(self, drawn: PyTree) -> PyTree:
        """Return the predicted variables, with `drawn` in place of those that are not predicted."""
        if self._predicted is None:
            raise ValueError("ghn is None, expected a GHN for every initialisation but 'random'")
        paths, structure = jax.tree_util.tree_flatten_with_path(self._predicted)
        keep = set(self._kept_indices())
        leaves = []
        for index, ((_, predicted), own) in enumerate(
            zip(paths, jax.tree.leaves(drawn), strict=True)
        ):
            leaves.append(own if index in keep else np.asarray(predicted))
        return jax.tree.unflatten(structure, leaves)

    def _kept_indices(self) -> Iterable[int]:
        yield from self._traced.kept
        if self._is_classifier_random:
            for index, path in enumerate(self._traced.description.paths):
                if path in self._classifier_paths:
                    yield index
