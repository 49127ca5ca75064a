"""Draw architectures: the generator of DeepNets-1M as a function of a seed and an index.

In: a `SpaceConfig`, a seed and an index. Out: an `Architecture`. Every index has its own random
numbers, so that architecture i is the same whether or not 0..i-1 were drawn, in any process
(docs/method.md, 'Sampling'; Knyazev et al., NeurIPS 2021, section 3.1).

A candidate is drawn as a whole and then kept or rejected as a whole: the numbers of cells and steps
are drawn again too, as in the original, so that the rejection rules shape the distribution of
everything.

Operations and inputs are drawn uniformly. The original draws a Gaussian score per (input,
operation) and takes the best two inputs by their best operation. As the scores are independent and
identically distributed, the best operation is uniform, the inputs are a uniform ordered pair of
distinct states, and the two are independent.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from ghn_jax.architectures import OPERATIONS, UNLEARNED_OPERATIONS, Architecture, Genotype, NodeOp
from ghn_jax.sampling.parameter_count import count_parameters
from ghn_jax.sampling.space import SpaceConfig
from ghn_jax.targets.plan import SMALL_IMAGE_LIMIT, DisconnectedError, lower

REFERENCE_CHANNELS = 32
"""Width at which parameters are counted, to limit their number and to choose the width."""

REFERENCE_FC_SIZE = 256
"""Width of hidden linear layers when parameters are counted."""

REFERENCE_CLASSES = 10
"""Number of classes when parameters are counted, whatever the data set."""

REFERENCE_IMAGE_SIZES = (32, 224)
"""Sizes of (small, large) images at which parameters are counted, in pixels."""

MAX_ATTEMPTS = 10_000
"""Candidates drawn before giving up; without restrictions four in five are kept."""

TRAINING_WIDTHS = tuple(range(32, 129, 16))
"""Widths of training architectures in ascending order; large networks draw from a prefix."""

TRAINING_FC_SIZES = tuple(range(64, 513, 64))
"""Widths of hidden linear layers of training architectures."""


class ArchitectureStream:
    """The endless sequence of architectures for a space and a seed; nothing is stored.

    `stream[index]` draws one architecture, `iter(stream)` draws all from index 0 on, and
    `stream.iterate_from(index)` all from an index on, as a resumed run does.
    """

    def __init__(self, space: SpaceConfig, seed: int) -> None:
        """Set up the stream without drawing anything.

        Args:
            space: the distribution to draw from.
            seed: a non-negative integer.

        Raises:
            ValueError: if the seed is not a non-negative int.
        """
        _check_natural("seed", seed)
        self.space = space
        self.seed = seed

    def __getitem__(self, index: int) -> Architecture:
        return sample_architecture(self.space, self.seed, index)

    def __iter__(self) -> Iterator[Architecture]:
        return self.iterate_from(0)

    def iterate_from(self, index: int) -> Iterator[Architecture]:
        """Yield the architectures from `index` on, without end.

        Args:
            index: index of the first architecture.

        Yields:
            Architectures index, index + 1, ...

        Raises:
            ValueError: if the index is not a non-negative int.
        """
        _check_natural("index", index)
        while True:
            yield self[index]
            index += 1


def sample_architecture(space: SpaceConfig, seed: int, index: int) -> Architecture:
    """Draw architecture `index` of a space.

    Args:
        space: the distribution to draw from.
        seed: a non-negative integer.
        index: a non-negative integer.

    Returns:
        The architecture, always the same for the same arguments.

    Raises:
        ValueError: if the seed or index is negative, or none of `MAX_ATTEMPTS` candidates satisfies
            the restrictions of the space.
    """
    _check_natural("seed", seed)
    _check_natural("index", index)
    sequence = np.random.SeedSequence(seed, spawn_key=(space.rules.stream, index))
    generator = np.random.Generator(np.random.Philox(sequence))
    limit = space.max_parameters or space.rules.max_parameters
    for _ in range(MAX_ATTEMPTS):
        candidate = _draw_candidate(space, generator)
        if candidate is None:
            continue
        counts = tuple(
            count_parameters(candidate, image_size, REFERENCE_CLASSES)
            for image_size in REFERENCE_IMAGE_SIZES
        )
        if max(counts) <= limit and _is_usable(space, candidate):
            num_parameters = counts[space.image_size > SMALL_IMAGE_LIMIT]
            channels, fc_size = draw_sizes(space, candidate, num_parameters, generator)
            return dataclasses.replace(candidate, channels=channels, fc_size=fc_size)
    raise ValueError(
        f"space {space!r} accepted none of {MAX_ATTEMPTS} candidates, expected at least one:"
        " loosen its restrictions"
    )


def _draw_candidate(space: SpaceConfig, generator: np.random.Generator) -> Architecture | None:
    """Draw everything but the sizes; return None if a rule on operations rejects the result."""
    rules = space.rules
    num_cells, deep, num_steps = _draw_depth(space, generator)
    genotype = _draw_genotype(space, num_steps, generator)
    if not _is_acceptable(genotype):
        return None
    attention = "msa" in genotype.operations
    stem_kernel = (3, 5, 7)[generator.integers(3)]
    channel_multiplier, stem_type, num_fc_layers = (int(i) for i in generator.integers(2, size=3))
    channel_multiplier += 1
    pool_draw, preprocess_draw, flatten_draw, norm_draw = generator.random(4)
    preprocess_required = num_steps > 1 or channel_multiplier > 1
    small = num_cells <= rules.num_cells[0] + 1 and num_steps <= rules.max_steps_deep
    without_norm = rules.norm == "never" or (rules.norm == "some" and small and norm_draw < 0.5)
    return Architecture(
        genotype=genotype,
        num_cells=num_cells,
        channels=REFERENCE_CHANNELS,
        stem_type=stem_type,
        stem_pool=bool(stem_type == 0 and pool_draw < 0.5),
        stem_kernel=stem_kernel,
        norm=None if without_norm else "batch",
        preprocess=bool(preprocess_required or preprocess_draw < rules.preprocess_share[attention]),
        channel_multiplier=channel_multiplier,
        global_pool=bool(attention or deep or space.global_pool_only or flatten_draw >= 0.1),
        num_fc_layers=1 + num_fc_layers,
        fc_size=REFERENCE_FC_SIZE,
    )


def _draw_depth(space: SpaceConfig, generator: np.random.Generator) -> tuple[int, bool, int]:
    """Return the number of cells, whether that counts as deep, and the number of steps."""
    rules = space.rules
    low, high = space.num_cells or rules.num_cells
    num_cells = int(generator.integers(low, high + 1))
    threshold = rules.deep_thresholds[generator.integers(len(rules.deep_thresholds))]
    deep = num_cells > threshold
    max_steps = rules.max_steps_deep if deep else rules.num_steps[1]
    if space.max_steps is not None:
        max_steps = min(max_steps, space.max_steps)
    return num_cells, deep, int(generator.integers(rules.num_steps[0], max_steps + 1))


def _draw_genotype(space: SpaceConfig, num_steps: int, generator: np.random.Generator) -> Genotype:
    unlearned_reduce, drop_concat = (bool(half) for half in generator.random(2) < 0.5)
    last = num_steps + 1
    concat = tuple(range(2, last + 1))
    if drop_concat and num_steps > 1:
        kept = generator.random(num_steps - 1) < 0.5
        concat = (*(state for state, keep in zip(concat, kept, strict=False) if keep), last)
    allow_none = num_steps > 1
    return Genotype(
        normal=_draw_cell(_choices(space, allow_none, False), num_steps, generator),
        normal_concat=concat,
        reduce=_draw_cell(_choices(space, allow_none, unlearned_reduce), num_steps, generator),
        reduce_concat=concat,
    )


@functools.lru_cache(maxsize=256)
def _choices(space: SpaceConfig, allow_none: bool, unlearned_only: bool) -> tuple[str, ...]:
    """Return the operations to draw from for an edge, in the order of `OPERATIONS`."""
    allowed = tuple(
        operation
        for operation in OPERATIONS
        if operation in space.allowed_operations and (allow_none or operation != "none")
    )
    unlearned = tuple(operation for operation in allowed if operation in UNLEARNED_OPERATIONS)
    choices = unlearned if unlearned_only and unlearned else allowed
    if not choices:
        raise ValueError(
            f"allowed_operations is {space.allowed_operations!r}, expected some besides 'none':"
            " cells of one step have no 'none'"
        )
    return choices


def _draw_cell(
    choices: tuple[str, ...], num_steps: int, generator: np.random.Generator
) -> tuple[NodeOp, ...]:
    """Draw 2 * num_steps pairs: uniform operations, and for each step two distinct states."""
    operations = generator.integers(len(choices), size=2 * num_steps)
    num_states = np.arange(2, num_steps + 2)
    first = generator.integers(num_states)
    second = (first + generator.integers(1, num_states)) % num_states
    inputs = np.stack([first, second], axis=1).reshape(-1)
    return tuple(
        (choices[operation], state)
        for operation, state in zip(operations.tolist(), inputs.tolist(), strict=True)
    )


def _is_acceptable(genotype: Genotype) -> bool:
    """Return whether the operations obey the original's rules against hard-to-train networks."""
    for cell in (genotype.normal, genotype.reduce):
        names = [operation for operation, _ in cell]
        if names.count("cse") > 1 or names.count("conv_5x5") + names.count("conv_7x7") > 1:
            return False
    operations = genotype.operations
    # Separable and dilated convolutions count as convolutions here.
    if any("conv" in operation for operation in operations):
        return True
    return "msa" in operations and "cse" not in operations


def _is_usable(space: SpaceConfig, candidate: Architecture) -> bool:
    """Return whether the output depends on the input and the graph is not too large.

    Only a `none` can disconnect a network, so most candidates need not be lowered.
    """
    if space.max_nodes is None and "none" not in candidate.genotype.operations:
        return True
    try:
        plan = lower(candidate, *space.input_sizes)
    except DisconnectedError:
        return False
    return space.max_nodes is None or len(plan.nodes) <= space.max_nodes


def draw_sizes(
    space: SpaceConfig, candidate: Architecture, num_parameters: int, generator: np.random.Generator
) -> tuple[int, int]:
    """Draw the width and that of hidden linear layers; large networks get small widths.

    Args:
        space: the distribution, with its restrictions and the split's factor on the width.
        candidate: the architecture, whose own sizes are ignored.
        num_parameters: number of parameters in all its layers, at the reference width and the
            space's image size.
        generator: the random generator, whose state advances.

    Returns:
        The number of channels and the width of hidden linear layers.
    """
    millions = num_parameters / 1e6
    num_cells = candidate.num_cells
    operations = candidate.genotype.operations
    dense = "conv_5x5" in operations or "conv_7x7" in operations
    if millions > 0.8 or not candidate.global_pool or dense or num_cells > 12:
        widths = TRAINING_WIDTHS[:1]
    elif millions > 0.4 or num_cells > 10:
        widths = TRAINING_WIDTHS[:2]
    elif millions > 0.2 or num_cells > 8:
        widths = TRAINING_WIDTHS[:3]
    else:
        widths = TRAINING_WIDTHS
    fc_sizes = TRAINING_FC_SIZES[:4]
    unlimited = widths is TRAINING_WIDTHS
    widths = space.widths or widths
    channels = widths[generator.integers(len(widths))]
    if unlimited and channels <= 64:
        fc_sizes = TRAINING_FC_SIZES
    fc_sizes = space.fc_sizes or fc_sizes
    fc_size = fc_sizes[generator.integers(len(fc_sizes))]
    factor = space.rules.channel_factors[space.image_size > SMALL_IMAGE_LIMIT]
    return channels * factor, fc_size


def _check_natural(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} is {value!r}, expected a non-negative int")
