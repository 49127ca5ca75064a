"""Report what a GHN can predict of a network, and why it cannot predict the rest."""

import dataclasses
import math

import jax

from ghn_jax.tracing.gradients import FIXED
from ghn_jax.tracing.rescaling import LayerScale, describe_excess, describe_scales
from ghn_jax.tracing.traced_network import STATE, TracedNetwork


@dataclasses.dataclass(frozen=True)
class Report:
    """What was predicted and what was not.

    Attributes:
        predicted: Paths of predicted parameters, joined by "/".
        kept: For the path of everything else, the reason why it has its initial value.
        num_predicted: Number of predicted parameters.
        num_parameters: Number of parameters; state such as running statistics does not count, nor
            does what stands behind `stop_gradient`.
        scales: How large the output of every layer is on the images of `check`, in the order of
            depth, beside He's initialisation; empty without.
    """

    predicted: tuple[str, ...]
    kept: dict[str, str]
    num_predicted: int
    num_parameters: int
    scales: tuple[LayerScale, ...] = ()

    @property
    def unpredicted(self) -> tuple[str, ...]:
        """Return a line for every kept parameter, its path and the reason.

        State is left out, and what stands behind `stop_gradient`: the network keeps it itself.
        """
        own = (STATE, FIXED)
        return tuple(f"{path}: {why}" for path, why in self.kept.items() if why not in own)

    @property
    def warning(self) -> str | None:
        """Say which of `scales` are far from He's; None if none is."""
        return describe_excess(self.scales, STATE in self.kept.values())

    def __str__(self) -> str:
        lines = [
            f"{self.num_predicted:,} of {self.num_parameters:,} parameters predicted,"
            f" {len(self.predicted)} tensors"
        ]
        lines += [f"kept {line}" for line in self.unpredicted]
        for reason, what in ((FIXED, "behind stop_gradient"), (STATE, "of state")):
            count = list(self.kept.values()).count(reason)
            noun = "tensor" if count == 1 else "tensors"
            lines += [f"kept {count} {noun} {what}"] if count else []
        return "\n".join([*lines, *describe_scales(self.scales)])


def make_report(traced: TracedNetwork) -> Report:
    """Say what of a traced network can be predicted."""
    network = traced.description
    names = ["/".join(path) for path in network.paths]
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(network.variables)]
    indices = [
        index
        for index in range(len(names))
        if network.is_parameter[index] and traced.kept.get(index) != FIXED
    ]
    predicted = [index for index in indices if index not in traced.kept]
    return Report(
        tuple(names[index] for index in predicted),
        {names[index]: reason for index, reason in traced.kept.items()},
        sum(sizes[index] for index in predicted),
        sum(sizes[index] for index in indices),
    )
