"""The architectures of a split: drawn, listed, or read from a file.

In: the name of a split, and a number. Out: candidates for an evaluation, lowered one at a time as
they are asked for.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence

from ghn_jax.architectures import PREDEFINED, Architecture, ResNet
from ghn_jax.deepnets1m.reader import DeepNets1M
from ghn_jax.evaluation.architecture_specs import stored_network
from ghn_jax.evaluation.evaluate import ArchitectureSplit, Candidate
from ghn_jax.sampling import SPLITS, SpaceConfig, sample_architecture
from ghn_jax.targets.plan import Plan, lower
from ghn_jax.training.config import PREDEFINED_SPLIT, ExperimentConfig

# Published numbers of architectures; of the training and search splits a sample.
NUM_ARCHITECTURES = {"test": 500, "val": 500, "wide": 100, "deep": 100, "dense": 100, "bnfree": 100}
NUM_ARCHITECTURES |= {PREDEFINED_SPLIT: 2, "train": 500, "search": 500}


def open_splits(
    config: ExperimentConfig,
    splits: Sequence[tuple[str, int | None]],
    seed: int,
    deepnets: str | os.PathLike[str] | None = None,
) -> list[ArchitectureSplit]:
    """Find the first architectures of splits; files are opened before anything is evaluated.

    Args:
        config: The config of training: its space, and the longest distance with an edge.
        splits: Pairs of a split and a number of architectures; None is the published number, or
            all of a file.
        seed: Draws the architectures.
        deepnets: Folder of DeepNets-1M files to read the architectures from; None draws them. The
            predefined split is in no file.

    Returns:
        The splits, each to be evaluated once.

    Raises:
        ValueError: If a file lacks a split, or has fewer architectures than asked for.
    """
    space, opened = config.space, []
    for name, num in splits:
        if deepnets is None or name == PREDEFINED_SPLIT:
            num = NUM_ARCHITECTURES[name] if num is None else num
            opened.append(ArchitectureSplit(name, num, split_plans(space, name, num, seed)))
            continue
        nets = DeepNets1M(deepnets, name, space.image_size)
        num = len(nets) if num is None else num
        if num > len(nets):
            raise ValueError(
                f"num_architectures is {num}, expected at most the {len(nets)} of split {name!r}"
                f" in {nets.path}"
            )
        plans = stored_plans(nets, num, space.num_classes, config.ghn.virtual_edges)
        opened.append(ArchitectureSplit(name, num, plans))
    return opened


def split_space(space: SpaceConfig, split: str) -> SpaceConfig:
    """Return the space of a split, restricted like the space used for training.

    The restrictions on depth, steps and size are lifted for the splits that are out of
    distribution by them.

    Args:
        space: The space used for training.
        split: One of `ghn_jax.sampling.SPLITS`.

    Returns:
        The space to draw from.

    Raises:
        ValueError: If `split` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    if split in ("train", "val", "test", "wide"):
        return dataclasses.replace(space, split=split)
    return dataclasses.replace(
        space, split=split, num_cells=None, max_steps=None, max_parameters=None, max_nodes=None
    )


def split_plans(space: SpaceConfig, split: str, num: int, seed: int) -> Iterator[tuple[int, Plan]]:
    """Yield index and plan of the first architectures of a split."""
    for index in range(num):
        if split == PREDEFINED_SPLIT:
            if index == len(PREDEFINED):
                return
            architecture: Architecture | ResNet = [*PREDEFINED.values()][index]
        else:
            architecture = sample_architecture(split_space(space, split), seed, index)
        yield index, lower(architecture, *space.input_sizes)


def stored_plans(
    nets: DeepNets1M, num: int, num_classes: int, max_distance: int
) -> Iterator[Candidate]:
    """Yield index, plan and graph of the first architectures of a file's split.

    Args:
        nets: The split, opened for the size of the images.
        num: Number of architectures.
        num_classes: Number of outputs of the networks.
        max_distance: Longest distance that gets an edge.

    Yields:
        Index, plan and graph.
    """
    for index in range(num):
        yield index, *stored_network(nets, index, num_classes, max_distance)
