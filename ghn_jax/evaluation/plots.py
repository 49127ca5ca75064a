"""Accuracy per split as a bar chart."""

from collections.abc import Sequence
from pathlib import Path

from ghn_jax.evaluation.evaluate import Summary
from ghn_jax.extras import extra

with extra("train", "pictures"):
    from matplotlib.figure import Figure


def plot_summaries(summaries: Sequence[Summary], path: str | Path) -> None:
    """Draw mean top-1 with standard errors per split, beside random initialisation where measured.

    Args:
        summaries: One per split.
        path: PNG, SVG or PDF file.
    """
    figure = Figure(figsize=(1.5 + 1.1 * len(summaries), 3.6), layout="constrained")
    axes = figure.subplots()
    positions = range(len(summaries))
    predicted = [100 * s.top1_mean for s in summaries]
    errors = [100 * s.top1_standard_error for s in summaries]
    axes.bar(positions, predicted, 0.4, yerr=errors, capsize=3, color="#3b6ea5", label="predicted")
    if all(s.random_top1_mean is not None for s in summaries):
        shifted = [position + 0.4 for position in positions]
        values = [100 * (s.random_top1_mean or 0.0) for s in summaries]
        errors = [100 * (s.random_top1_standard_error or 0.0) for s in summaries]
        label = "random (He)"
        axes.bar(shifted, values, 0.4, yerr=errors, capsize=3, color="#b9b9b9", label=label)
    axes.set_xticks([position + 0.2 for position in positions], [s.split for s in summaries])
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)
