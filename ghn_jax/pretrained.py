"""Load a trained GHN and use it: `ghn_jax.load(path).predict(architecture)`."""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import jax
import numpy as np

from ghn_jax.architectures import Architecture, ResNet
from ghn_jax.configuration.validation import (
    check_flag,
    check_instance,
    check_positive_int,
    describe_value,
    shorten,
)
from ghn_jax.graphs import ArchGraph
from ghn_jax.hypernetworks import GHNConfig, Hypernetwork, parameter_shapes
from ghn_jax.hypernetworks.model import as_model
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.interop.locations import resolve
from ghn_jax.interop.torch_checkpoints import load_torch_checkpoint, official_experiment
from ghn_jax.prediction import Prediction, predict_network, predict_plan
from ghn_jax.sampling import SpaceConfig
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.plan import Plan, lower
from ghn_jax.training.checkpoints import load_checkpoint
from ghn_jax.training.config import ExperimentConfig

if TYPE_CHECKING:
    from ghn_jax.training.trainer import TrainState

_PATH = "a path, as a str or a pathlib.Path"


class GHN:
    """A hypernetwork with its parameters.

    Args:
        model: The hypernetwork, or its config.
        ghn_params: Its parameters: `variables["params"]`.
        experiment: The config of the run that trained it; None is one with the model's config and
            number of classes, and defaults otherwise.

    Raises:
        ValueError: If `ghn_params` has other parts than the model (shapes within them are checked
            where they are first used), or `experiment` is of another model.
    """

    def __init__(
        self,
        model: Hypernetwork | GHNConfig,
        ghn_params: Any,
        experiment: ExperimentConfig | None = None,
    ) -> None:
        check_instance("model", model, (Hypernetwork, GHNConfig), "a Hypernetwork or a GHNConfig")
        self.model = as_model(model)
        config = self.model.config
        _check_parts(self.model, ghn_params)
        if experiment is None:
            space = SpaceConfig(num_classes=config.num_classes)
            experiment = ExperimentConfig(space=space, ghn=config)
        check_instance("experiment", experiment, ExperimentConfig, "an ExperimentConfig")
        if experiment.ghn != config:
            raise ValueError(f"experiment has {experiment.ghn}, expected the model's {config}")
        self.experiment = experiment
        self.ghn_params = ghn_params
        self.predictor = Predictor(self.model)

    @property
    def config(self) -> GHNConfig:
        """The config of the hypernetwork."""
        return self.experiment.ghn

    @overload
    def predict(
        self,
        network: Architecture | ResNet,
        images: int | None = None,
        *,
        image_size: int | None = None,
        strict: bool = False,
        check: Any = None,
        rescale: bool | str = False,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        network: Any,
        images: Any = None,
        *,
        strict: bool = False,
        key: jax.Array | None = None,
        check: Any = None,
        rescale: bool | str = False,
        call_args: Sequence[Any] = (),
        call_kwargs: Mapping[str, Any] | None = None,
        **call_arguments: Any,
    ) -> Prediction: ...

    def predict(
        self,
        network: Any,
        images: Any = None,
        *,
        image_size: int | None = None,
        strict: bool = False,
        key: jax.Array | None = None,
        check: Any = None,
        rescale: bool | str = False,
        call_args: Sequence[Any] = (),
        call_kwargs: Mapping[str, Any] | None = None,
        **call_arguments: Any,
    ) -> Prediction:
        """Predict the parameters of a network in one forward pass.

        Args:
            network: An architecture of the space or a ResNet, like those of training or not; or any
                network of Flax, Haiku, Equinox or plain JAX, see `ghn_jax.tracing.describe`.
            images: Of any other network, a batch of images, or its shape: a `jax.ShapeDtypeStruct`
                or, of float32, a tuple such as `(4, 32, 32, 3)`; or a tree of them, which is one
                argument; None if the network takes them by keyword only. Of an architecture, in
                this place, `image_size`.
            image_size: Height and width of an architecture's images, pixels; None is that of
                training.
            strict: Whether a parameter that cannot be predicted is an error. Those of architectures
                always can.
            key: For any other network's initialiser, which fills what cannot be predicted; None is
                `jax.random.key(0)`.
            check: A batch of real images, in arrays as `images`, of any number. The network runs
                on it with the predicted parameters and with He's initialisation, and
                `report.scales` holds how large the output of every layer is of both.
            rescale: Whether to bring layers to He's scale: 'images' by their outputs on those of
                `check`, layer by layer, 'noise' by those on normally distributed numbers, 'fan_in'
                by the size of every kernel alone. True is 'images' with `check`, 'noise' without.
            call_args: Further positional arguments of any other network's call. Arrays whose first
                axis is as long as that of the images hold the batch, also in keyword arguments.
            call_kwargs: Keyword arguments of its call, also those that are called as one of these:
                beside them, `key`, `strict`, `check` and `rescale` are those above.
            **call_arguments: Keyword arguments of its call, such as `train=False`.

        Returns:
            The network, its variables, the graph, and a report of what was predicted.

        Raises:
            ValueError: If an argument is missing, is not as described, or is one that this kind of
                network does not take; with `strict`, if a parameter cannot be predicted.

        Warns:
            UserWarning: If the output of a layer is more than 100 times larger or smaller on the
                images of `check` than with He's initialisation.
        """
        check_flag("strict", strict)
        if isinstance(network, Architecture | ResNet):
            own = {"key": key is not None, "call_args": call_args, "call_kwargs": call_kwargs}
            given = [*(name for name, value in own.items() if value), *call_arguments]
            if given:
                raise ValueError(
                    f"{', '.join(given)} given for an architecture, expected image_size only"
                )
            prediction = self._predict_architecture(network, images, image_size, check, rescale)
            return _warned(prediction)
        if image_size is not None:
            call_arguments["image_size"] = image_size  # of the network's own call
        prediction = predict_network(
            self.predictor,
            self.ghn_params,
            network,
            images,
            strict=strict,
            key=key,
            check=check,
            rescale=rescale,
            call_args=call_args,
            call_kwargs=call_kwargs,
            **call_arguments,
        )
        return _warned(prediction)

    def predict_plan(self, plan: Plan, graph: ArchGraph) -> Prediction:
        """Predict all parameters of a plan, reading a graph that may come from a file.

        Args:
            plan: The lowered architecture, with as many classes as the GHN.
            graph: Its graph, with the tensors of `plan.tensors`.

        Returns:
            The network, its variables, the graph, and a report of what was predicted: all.

        Raises:
            ValueError: If the plan has another number of classes, or the graph is of another
                network.
        """
        return predict_plan(self.predictor, self.ghn_params, plan, graph)

    @classmethod
    def from_state(
        cls, state: "TrainState", experiment: ExperimentConfig, model: Hypernetwork | None = None
    ) -> "GHN":
        """Take a GHN out of a training run.

        Args:
            state: The run's state, such as `ghn_jax.train` returns; on this process's devices.
            experiment: The run's config.
            model: The hypernetwork, where it is composed of modules of one's own; None is what the
                config describes.

        Raises:
            ValueError: If the state is not of such a run, or an argument is not as described.
        """
        # No isinstance: training is not imported where only predictions are made.
        if not hasattr(state, "ghn_params"):
            raise ValueError(
                f"state is {describe_value(state)}, expected the state of a run, the second of what"
                " ghn_jax.train returns"
            )
        check_instance("experiment", experiment, ExperimentConfig, "an ExperimentConfig")
        model = _own_or_described(model, experiment.ghn)
        return cls(model, jax.tree.map(np.asarray, state.ghn_params), experiment)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the GHN as the folder of a run at step 0, which `ghn_jax.load` reads.

        Args:
            path: A new or empty folder.

        Raises:
            ValueError: If the folder has something in it.
        """
        check_instance("path", path, (str, os.PathLike), _PATH)
        # Imported here, since it needs what training needs and loading does not.
        from ghn_jax.interop.checkpoint_conversion import write_run

        write_run(path, self.experiment, self.ghn_params)

    def _predict_architecture(
        self,
        architecture: Architecture | ResNet,
        images: Any,
        image_size: int | None,
        check: Any,
        rescale: bool | str,
    ) -> Prediction:
        if images is not None and image_size is not None:
            raise ValueError(
                f"images is {describe_value(images)} and image_size is {image_size!r}, expected one"
                " of them for an architecture"
            )
        space = self.experiment.space
        size = images if image_size is None else image_size
        if size is None:
            size = space.image_size
        elif hasattr(size, "shape"):
            raise ValueError(
                f"images is {describe_value(size)}, expected for an architecture their height and"
                " width, a positive int"
            )
        check_positive_int("image_size", size)
        plan = lower(architecture, size, self.config.num_classes, space.num_channels)
        graph = build_graph(plan, self.config.virtual_edges)
        return predict_plan(
            self.predictor, self.ghn_params, plan, graph, check=check, rescale=rescale
        )


def load(path: str | os.PathLike[str], model: Hypernetwork | None = None) -> GHN:
    """Load a GHN from nothing but a path.

    Args:
        path: A work directory of training, a checkpoint in one, the name of a GHN that comes with
            the package: "digits", an official checkpoint of the original: a `.pt` file, which is
            read without running anything in it, or either of these on the Hugging Face hub:
            "hf:OWNER/NAME/FILE.pt", "hf:OWNER/NAME" (extra `hub`).
        model: The hypernetwork, where it is composed of modules of one's own; None is what the
            checkpoint's config describes.

    Returns:
        The GHN.

    Raises:
        ValueError: If there is no readable checkpoint, it is of another model, or a `.pt` file
            holds anything but the tensors of a GHN; says what was found.
    """
    check_instance("path", path, (str, os.PathLike), _PATH)
    if model is not None:  # before what may take long
        check_instance("model", model, Hypernetwork, "a Hypernetwork")
    path = resolve(path)
    if path.is_file() or path.suffix == ".pt":
        checkpoint = load_torch_checkpoint(path)
        config, ghn_params = official_experiment(checkpoint.config), checkpoint.variables["params"]
    else:

        def expected(config: ExperimentConfig, stored: Any) -> Any:
            own = _own_or_described(model, config.ghn)
            try:
                _check_parts(own, stored)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            return parameter_shapes(config.ghn if model is None else own)["params"]

        config, ghn_params = load_checkpoint(path, expected)
    return GHN(_own_or_described(model, config.ghn), ghn_params, config)


def _warned(prediction: Prediction) -> Prediction:
    """Warn the caller of `GHN.predict` of layers that are far from He's scale."""
    text = prediction.report.warning
    if text is not None:
        warnings.warn(text, stacklevel=3)
    return prediction


def _check_parts(model: Hypernetwork, ghn_params: Any) -> None:
    """Raise ValueError unless parameters have the parts of a model."""
    expected = sorted(model.parameter_names())
    check_instance("ghn_params", ghn_params, Mapping, f"a mapping with keys {expected}")
    if sorted(ghn_params) != expected:
        raise ValueError(
            f"ghn_params has {shorten(sorted(ghn_params))}, expected {expected}; a GHN trained with"
            " modules of one's own is loaded with them: ghn_jax.load(path, model=model)"
        )


def _own_or_described(model: Hypernetwork | None, config: GHNConfig) -> Hypernetwork:
    """The caller's model, if it is one and of the run's config; that of the config for None."""
    if model is None:
        return Hypernetwork(config)
    check_instance("model", model, Hypernetwork, "a Hypernetwork")
    if model.config != config:
        raise ValueError(f"model has {model.config}, expected the run's {config}")
    return model
