"""Load a trained GHN and use it: `ghn_jax.load(path).predict(architecture)`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import jax
import numpy as np

from ghn_jax.architectures import Architecture, ResNet
from ghn_jax.graphs import ArchGraph
from ghn_jax.hypernetworks import GHNConfig, Hypernetwork
from ghn_jax.hypernetworks.model import as_model
from ghn_jax.hypernetworks.predictor import Predictor
from ghn_jax.interop.locations import resolve
from ghn_jax.interop.torch_checkpoints import load_torch_checkpoint, official_experiment
from ghn_jax.sampling import SpaceConfig
from ghn_jax.targets.graph import build_graph
from ghn_jax.targets.network import TargetNetwork, params_tree
from ghn_jax.targets.plan import Plan, lower
from ghn_jax.targets.spelling import default_operations
from ghn_jax.tracing import NetworkPrediction, predict_network
from ghn_jax.training.checkpoints import load_checkpoint
from ghn_jax.training.config import ExperimentConfig

if TYPE_CHECKING:
    from ghn_jax.training.trainer import TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """A network with predicted parameters.

    Attributes:
        network: The Flax module; every transformation of JAX passes through it.
        variables: `{"params": ...}` for `network.apply`; batch norm then uses batch statistics.
        graph: What the GHN read.
    """

    network: TargetNetwork
    variables: dict[str, Any]
    graph: ArchGraph

    @property
    def num_parameters(self) -> int:
        """Number of predicted parameters."""
        return self.network.plan.num_parameters


class GHN:
    """A hypernetwork with its parameters.

    Args:
        model: The hypernetwork, or the configuration of one.
        ghn_params: Its parameters: `variables["params"]`.
        experiment: Of the run that trained it; None is one with the model's configuration and
            classes, and defaults otherwise.

    Raises:
        ValueError: If these are not parameters of the model, or the experiment has another.
    """

    def __init__(
        self,
        model: Hypernetwork | GHNConfig,
        ghn_params: Any,
        experiment: ExperimentConfig | None = None,
    ) -> None:
        self.model = as_model(model)
        config = self.model.config
        found, expected = set(ghn_params), self.model.parameter_names()
        if found != expected:
            raise ValueError(
                f"ghn_params has {sorted(found)}, expected {sorted(expected)}; a GHN trained with"
                " modules of one's own is loaded with them: ghn_jax.load(path, model=model)"
            )
        if experiment is None:
            space = SpaceConfig(num_classes=config.num_classes)
            experiment = ExperimentConfig(space=space, ghn=config)
        elif experiment.ghn != config:
            raise ValueError(f"experiment has {experiment.ghn}, expected {config}")
        self.experiment = experiment
        self.ghn_params = ghn_params
        self.predictor = Predictor(self.model)

    @property
    def config(self) -> GHNConfig:
        """Configuration of the hypernetwork."""
        return self.experiment.ghn

    @overload
    def predict(
        self,
        network: Architecture | ResNet,
        images: int | None = None,
        *,
        image_size: int | None = None,
        strict: bool = False,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        network: Any,
        images: Any,
        *,
        strict: bool = False,
        key: jax.Array | None = None,
        **call_arguments: Any,
    ) -> NetworkPrediction: ...

    def predict(
        self,
        network: Any,
        images: Any = None,
        *,
        image_size: int | None = None,
        strict: bool = False,
        key: jax.Array | None = None,
        **call_arguments: Any,
    ) -> Prediction | NetworkPrediction:
        """Predict all parameters of a network in one forward pass.

        Args:
            network: An architecture of the space or a ResNet, like those of training or not; or any
                network of Flax, Haiku, Equinox or plain JAX, see `ghn_jax.tracing.describe`.
            images: A batch of any other network's images, or their shape. Of an architecture, in
                this place, `image_size`.
            image_size: Height and width of an architecture's images, pixels; None is that of
                training.
            strict: Raise an error if a parameter cannot be predicted. Those of architectures always
                can.
            key: For any other network's initialiser, which fills what cannot be predicted.
            **call_arguments: Keyword arguments of any other network's call, such as `train=False`.

        Returns:
            The network, its parameters and the graph; for any other network also a report.

        Raises:
            ValueError: If an argument is missing, or is one that this kind of network does not
                take; with `strict`, if a parameter cannot be predicted.
        """
        if isinstance(network, Architecture | ResNet):
            if call_arguments:
                raise ValueError(
                    f"{', '.join(call_arguments)} given for an architecture, expected image_size"
                    " only"
                )
            return self._predict_architecture(network, images if image_size is None else image_size)
        if image_size is not None:
            call_arguments["image_size"] = image_size  # of the network's own call
        if images is None:
            raise ValueError(
                f"images is missing, expected a batch of images or its shape for {network!r}"
            )
        return predict_network(
            self.predictor,
            self.ghn_params,
            network,
            images,
            strict=strict,
            key=key,
            **call_arguments,
        )

    @classmethod
    def from_state(
        cls, state: "TrainState", experiment: ExperimentConfig, model: Hypernetwork | None = None
    ) -> "GHN":
        """Take a GHN out of a training run.

        Args:
            state: Of the run, such as `ghn_jax.train` returns; on this process's devices.
            experiment: The run's config.
            model: The hypernetwork, where it is composed of modules of one's own.
        """
        ghn_params = jax.tree.map(np.asarray, state.ghn_params)
        return cls(model or experiment.ghn, ghn_params, experiment)

    def save(self, path: str | Path) -> None:
        """Write the GHN as the folder of a run at step 0, which `ghn_jax.load` reads.

        Args:
            path: Of a new or empty folder.

        Raises:
            ValueError: If the folder has something in it.
        """
        # Imported here, since it needs what training needs and loading does not.
        from ghn_jax.interop.checkpoint_conversion import write_run

        write_run(path, self.experiment, self.ghn_params)

    def _predict_architecture(
        self, architecture: Architecture | ResNet, image_size: int | None
    ) -> Prediction:
        space = self.experiment.space
        size = image_size or space.image_size
        plan = lower(architecture, size, self.config.num_classes, space.num_channels)
        return self.predict_plan(plan, build_graph(plan, self.config.virtual_edges))

    def predict_plan(self, plan: Plan, graph: ArchGraph) -> Prediction:
        """Predict all parameters of a plan, reading a graph that may come from a file.

        Args:
            plan: Of the network.
            graph: Its tensors in the order of `plan.tensors`.

        Returns:
            The network and its parameters, float32.
        """
        (arrays,) = self.predictor.predict(self.ghn_params, self.predictor.prepare([graph]))
        network = TargetNetwork(plan, default_operations())
        return Prediction(network, {"params": params_tree(plan, arrays)}, graph)


def load(path: str | Path, model: Hypernetwork | None = None) -> GHN:
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
        ValueError: If there is no readable checkpoint, or a `.pt` file holds anything but the
            tensors of a GHN; says what was found.
    """
    path = resolve(path)
    if path.is_file() or path.suffix == ".pt":
        checkpoint = load_torch_checkpoint(path)
        config, ghn_params = official_experiment(checkpoint.config), checkpoint.variables["params"]
    else:
        config, ghn_params = load_checkpoint(path)
    return GHN(model or config.ghn, ghn_params, config)
