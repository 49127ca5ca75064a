"""The metric that counts per split as a bar chart."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ghn_jax.evaluation.evaluate import Summary
from ghn_jax.extras import extra
from ghn_jax.tasks import CLASSIFICATION

with extra("train", "pictures"):
    from matplotlib.figure import Figure


def plot_summaries(
    summaries: Sequence[Summary],
    path: str | Path,
    labels: Mapping[str, str] = CLASSIFICATION.metric_labels,
) -> None:
    """Plot the main metric with standard errors, next to that of random parameters if measured.

    Args:
        summaries: One summary per split.
        path: Path of the PNG, SVG or PDF file.
        labels: Labels of the metrics, see `Task.metric_labels`.
    """
    name, label = next(iter(labels.items()))
    scale = 100 if label.endswith(" %") else 1
    figure = Figure(figsize=(1.5 + 1.1 * len(summaries), 3.6), layout="constrained")
    axes = figure.subplots()
    bars = [("predicted", "#3b6ea5", [s.metrics[name] for s in summaries])]
    random = [s.random[name] for s in summaries if s.random is not None]
    if len(random) == len(summaries):
        bars.append(("random (He)", "#b9b9b9", random))
    for shift, (legend, color, means) in enumerate(bars):
        positions = [position + 0.4 * shift for position in range(len(summaries))]
        heights, errors = zip(*[(scale * m, scale * e) for m, e in means], strict=True)
        axes.bar(positions, heights, 0.4, yerr=errors, capsize=3, color=color, label=legend)
    axes.set_xticks([index + 0.2 for index in range(len(summaries))], [s.split for s in summaries])
    axes.set_ylabel(label)
    if scale == 100:
        axes.set_ylim(0, 100)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)
