"""How many training iterations a prediction is worth, as in Knyazev et al. 2021 (figure 1).

In: the accuracies of a network trained from scratch, by step, and the accuracy of its predicted
parameters. Out: the step at which training reached the same accuracy, and a figure.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from ghn_jax.extras import extra


def iterations_to_reach(curve: Sequence[tuple[int, float]], accuracy: float) -> float | None:
    """Find the step at which training first reached an accuracy.

    Args:
        curve: Pairs (step, accuracy) in ascending order of steps.
        accuracy: The accuracy to reach.

    Returns:
        The step, linearly interpolated between two evaluations; None if training did not reach it.
    """
    previous: tuple[int, float] | None = None
    for step, value in curve:
        if value >= accuracy:
            if previous is None or value == previous[1]:
                return float(step)
            share = (accuracy - previous[1]) / (value - previous[1])
            return previous[0] + share * (step - previous[0])
        previous = (step, value)
    return None


def describe_iterations(
    curve: Sequence[tuple[int, float]], accuracy: float, steps_per_epoch: int
) -> str:
    """Describe in one line how many iterations the predicted parameters are worth."""
    predicted = f"predicted parameters: top-1 {100 * accuracy:.2f}%"
    reached = iterations_to_reach(curve, accuracy)
    if reached is None:
        best = max(value for _, value in curve)
        return f"{predicted}, more than {curve[-1][0]} iterations reached ({100 * best:.2f}%)"
    return f"{predicted}, as {reached:.0f} iterations ({reached / steps_per_epoch:.2f} epochs)"


def draw_iterations(
    curve: Sequence[tuple[int, float]], accuracy: float, path: str | pathlib.Path, title: str = ""
) -> None:
    """Draw the training curve, the prediction's accuracy, and the point where they meet.

    Args:
        curve: Pairs (step, accuracy in [0, 1]).
        accuracy: Accuracy of the predicted parameters, in [0, 1].
        path: The image file to write, such as `iterations.png`.
        title: The figure's title.
    """
    with extra("train", "pictures"):
        from matplotlib.figure import Figure

    steps, values = np.array(curve, np.float64).T
    figure = Figure(figsize=(5, 3.4))
    axis = figure.subplots()
    axis.plot(steps, 100 * values, label="trained from scratch")
    axis.axhline(100 * accuracy, color="tab:red", label="predicted, not trained")
    reached = iterations_to_reach(curve, accuracy)
    if reached is not None:
        axis.axvline(reached, color="tab:red", linestyle=":", label=f"{reached:.0f} iterations")
    axis.set_xscale("symlog", linthresh=max(steps[1] if len(steps) > 1 else 1, 1))
    axis.set(xlabel="iteration", ylabel="validation top-1, %", title=title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
