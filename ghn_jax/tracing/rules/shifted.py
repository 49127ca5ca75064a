"""Depthwise convolutions that are spelled as sums of shifted products.

sum_i shift(x, i) * w[i] has a scale for each shift while it is added up. Once the sum has all of a
parameter, the shifts lie on a grid, and the parameter is laid out as the grid is, it is a kernel.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from ghn_jax.tracing.builder import GraphBuilder
from ghn_jax.tracing.values import Data, Tap, Weight
from ghn_jax.tracing.views import View


def shift(data: Data, rank: int, starts: Sequence[int]) -> tuple[int, ...]:
    """Return how far data are shifted after a slice with these starts; padding starts below 0."""
    old = data.shift if len(data.shift) == rank else (0,) * rank
    return tuple(before + start for before, start in zip(old, starts, strict=True))


def mark_tap(scaled: Data, data: Data, weight: Weight) -> Data:
    """Remember that data with a shift were scaled, in case others are added."""
    if len(weight.views) != 1 or data.norm or weight.norm or len(data.nodes) != 1:
        return scaled
    (view,) = weight.views
    if view.size == 1 or sum(size > 1 for size in view.shape) > 1:
        return scaled
    return dataclasses.replace(scaled, weighted=(Tap(data.nodes[0], data.shift, view),))


def add_taps(builder: GraphBuilder, left: Data, right: Data) -> Data | None:
    """Return the sum of shifted products; None if it is none of the same data."""
    taps = (*left.weighted, *right.weighted)
    if not (left.weighted and right.weighted) or len({tap.node for tap in taps}) > 1:
        return None
    grid = _find_grid(taps)
    if grid is None:
        return None
    sizes, spacing, order = grid
    kernel = _find_kernel([taps[index].view for index in order], sizes) if spacing else None
    if kernel is None:
        node = builder.merge("sum", (*left.nodes, *right.nodes))
        return Data((node,), weighted=taps)
    channels = kernel.shape[-1]
    primitive = "dil_conv" if spacing > 1 else "sep_conv"
    node = builder.node(primitive, (taps[0].node,), (channels, 1, *sizes))
    builder.claim(kernel, node, "depthwise")
    return Data((node,))


def _find_grid(taps):
    """Return the size of the grid of shifts, their spacing, 0 if uneven, and the order of taps."""
    rank = max(len(tap.shift) for tap in taps)
    shifts = [tap.shift or (0,) * rank for tap in taps]
    if len(set(shifts)) < len(shifts) or {len(shift) for shift in shifts} != {rank}:
        return None
    places = [sorted(set(axis)) for axis in zip(*shifts, strict=True)]
    spatial = [values for values in places if len(values) > 1]
    if not 1 <= len(spatial) <= 2:
        return None
    steps = {step for values in spatial for step in np.diff(values).tolist()}
    sizes = (*(len(values) for values in spatial), 1)[:2]
    spacing = steps.pop() if len(steps) == 1 else 0
    return sizes, spacing, sorted(range(len(taps)), key=lambda index: shifts[index])


def _find_kernel(views, sizes):
    """Return the view that holds all others, (height, width, 1, C), or None if there is none."""
    channels = views[0].size
    whole = _common_view(views)
    shape = (*sizes, channels)
    if whole is None or whole.size != math.prod(shape) or len(views) != math.prod(sizes):
        return None
    positions = np.arange(math.prod(_shape_of_parameter(whole)))
    positions = positions.reshape(_shape_of_parameter(whole))
    wanted = np.stack([view.read(positions).reshape(channels) for view in views]).reshape(shape)
    inner = tuple(size for size in whole.shape if size > 1)
    flips = [axes for count in range(3) for axes in itertools.combinations((0, 1), count)]
    for axes in itertools.permutations(range(len(inner))):
        found = whole.reshape(inner).transpose(axes)
        if found.shape != tuple(size for size in shape if size > 1):
            continue
        for flipped in flips:
            kernel = found.reshape(shape)
            kernel = kernel.reverse(flipped) if flipped else kernel
            if np.array_equal(kernel.read(positions), wanted):
                return kernel.reshape((*sizes, 1, channels))
    return None


def _common_view(views: Sequence[View]) -> View | None:
    """Return what all views are slices of."""
    first = views[0]
    if any(view.parameter != first.parameter for view in views):
        return None
    steps = []
    for found in zip(*(view.steps for view in views), strict=False):
        if any(step != found[0] for step in found):
            break
        steps.append(found[0])
    if len(steps) == len(first.steps):
        return None
    return dataclasses.replace(first, shape=first.steps[len(steps)][1], steps=tuple(steps))


def _shape_of_parameter(view):
    return view.steps[0][1] if view.steps else view.shape
