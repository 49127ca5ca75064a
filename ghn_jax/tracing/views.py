"""Views of parameters: which elements a value holds, and in which order.

A kernel may pass through reshapes, transposes and slices before a convolution reads it. A view
keeps this chain of rearrangements, which is followed backwards to put a predicted kernel where the
network will look for it. Elementwise functions, which commute with rearrangements, stand beside it.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from ghn_jax.tracing.functions import Function, evaluate, invert

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """A rearrangement of (a part of) one parameter.

    Attributes:
        parameter: Index of the parameter.
        shape: Shape of the rearrangement; axes along which a network repeats it have size 1.
        steps: (kind, shape before, argument) of each step, starting at the parameter.
        functions: Functions of every element, the first one applied first.
    """

    parameter: int
    shape: tuple[int, ...]
    steps: tuple[tuple[str, tuple[int, ...], Any], ...] = ()
    functions: tuple[Function, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def region(self) -> tuple[int, str]:
        """Return the part of a parameter that the view holds; its order does not matter."""
        slices = [i for i, (kind, _, _) in enumerate(self.steps) if kind == "slice"]
        return (self.parameter, str(self.steps[: slices[-1] + 1]) if slices else "")

    @property
    def is_whole(self) -> bool:
        """Whether the view is the parameter as it is."""
        return not self.steps and not self.functions

    def through(self, function: Function) -> "View":
        """Elements in the same order, each replaced by a function of it."""
        return dataclasses.replace(self, functions=(*self.functions, function))

    def reshape(self, shape: tuple[int, ...]) -> "View":
        """Elements in the same order, in another shape of the same size."""
        return self if shape == self.shape else self._then("reshape", shape, shape)

    def transpose(self, axes: tuple[int, ...]) -> "View":
        """Axes in another order."""
        if axes == tuple(range(len(axes))):
            return self
        return self._then("transpose", axes, tuple(self.shape[axis] for axis in axes))

    def reverse(self, axes: tuple[int, ...]) -> "View":
        """Backwards along axes."""
        return self._then("reverse", axes, self.shape)

    def slice(self, index: Index) -> "View":
        """Return a part of the view."""
        sizes = (
            len(range(*part.indices(size))) for part, size in zip(index, self.shape, strict=True)
        )
        shape = tuple(sizes)
        return self if shape == self.shape else self._then("slice", index, shape)

    def choose(self, shape: tuple[int, ...]) -> "View":
        """Return one entry along the first axis, whichever, in a shape of its size."""
        return self._then("choose", shape, shape)

    def lift(self) -> "View":
        """Return all entries of which one was chosen, along the first axis.

        Each has the shape that the chosen one has now.
        """
        place = next(i for i, (kind, _, _) in enumerate(self.steps) if kind == "choose")
        _, stack, shape = self.steps[place]
        whole = dataclasses.replace(self, shape=stack, steps=self.steps[:place])
        view = whole.reshape((stack[0], *shape))
        for kind, _, argument in self.steps[place + 1 :]:
            if kind == "reshape":
                view = view.reshape((stack[0], *argument))
            elif kind == "transpose":
                view = view.transpose((0, *(axis + 1 for axis in argument)))
            elif kind == "reverse":
                view = view.reverse(tuple(axis + 1 for axis in argument))
            else:
                view = view.slice((slice(0, stack[0]), *argument))
        return view

    def shrink(self, side: int) -> "View":
        """Invert `extend`: return the (1, s, s, C) grid that predicts (n, C) tokens."""
        return self._then("shrink", side, (1, side, side, self.shape[-1]))

    def read(self, source: np.ndarray) -> np.ndarray:
        """The inverse of `restore`: the value that the network computes of the parameter.

        Args:
            source: The parameter.

        Returns:
            An array of shape `shape`.
        """
        for step in self.steps:
            source = _apply(step, source)
        return evaluate(self.functions, source)

    def restore(self, target: np.ndarray, value: np.ndarray) -> None:
        """Write into the part of a parameter that the view holds what the network makes a value of.

        Args:
            target: The parameter, which is overwritten.
            value: Values with the view's shape.
        """
        value = invert(self.functions, value)
        slices = [i for i, (kind, _, _) in enumerate(self.steps) if kind == "slice"]
        num_leading = next(
            (i for i, s in enumerate(self.steps) if s[0] != "slice"), len(self.steps)
        )
        if not slices or slices[-1] < num_leading:
            for _, _, index in self.steps[:num_leading]:
                target = target[index]
            target[...] = _invert(self.steps[num_leading:], value)
            return
        last = slices[-1] + 1  # a slice of something rearranged: follow the position of elements
        positions = np.arange(target.size).reshape(target.shape)
        for step in self.steps[:last]:
            positions = _apply(step, positions)
        flat = target.reshape(-1)  # parameters are contiguous: a view
        flat[positions.reshape(-1)] = _invert(self.steps[last:], value).reshape(-1)

    def _then(self, kind, argument, shape):
        step = (kind, self.shape, argument)
        return dataclasses.replace(self, shape=tuple(shape), steps=(*self.steps, step))


def _apply(step, array):
    kind, shape, argument = step
    if kind == "shrink":
        size = argument * argument
        grid = array.reshape(shape)[-size:]
        return grid.reshape(1, argument, argument, shape[-1])
    if kind == "reshape":
        return array.reshape(argument)
    if kind == "transpose":
        return array.transpose(argument)
    return np.flip(array, argument) if kind == "reverse" else array[argument]


def _invert(steps, value):
    for kind, shape, argument in reversed(steps):
        if kind == "transpose":
            value = value.transpose(np.argsort(argument))
        elif kind == "reverse":
            value = np.flip(value, argument)
        elif kind == "shrink":
            grid = value.reshape(-1, value.shape[-1])
            value = np.resize(grid, (shape[0] - len(grid), grid.shape[1]))
            value = np.concatenate([value, grid])
        else:
            value = value.reshape(shape)
    return value


def align_reshape(
    compact: tuple[int, ...], shape: tuple[int, ...], new_shape: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The compact shape after a reshape of a value that repeats along some axes.

    Args:
        compact: Its shape with size 1 along the axes that repeat.
        shape: Its shape.
        new_shape: After the reshape.

    Returns:
        `new_shape` with size 1 along axes that repeat; None if an axis mixes both kinds.
    """
    if compact == shape:
        return new_shape
    groups = match_axes(shape, new_shape)
    if groups is None:
        return None
    result: list[int] = []
    for old, new in groups:
        if compact[old] == shape[old]:
            result += new_shape[new]
        elif math.prod(compact[old]) == 1:
            result += [1] * len(new_shape[new])
        else:
            return None
    return tuple(result)


def match_axes(
    shape: tuple[int, ...], new_shape: tuple[int, ...]
) -> list[tuple[slice, slice]] | None:
    """Return which axes become which in a reshape, the fewest together; None if sizes differ."""
    groups: list[tuple[slice, slice]] = []
    old = new = 0
    while old < len(shape) or new < len(new_shape):
        old_end, new_end = old + 1, new + 1
        while math.prod(shape[old:old_end]) != math.prod(new_shape[new:new_end]):
            if math.prod(shape[old:old_end]) < math.prod(new_shape[new:new_end]):
                if old_end >= len(shape):
                    return None
                old_end += 1
            elif new_end >= len(new_shape):
                return None
            else:
                new_end += 1
        groups.append((slice(old, old_end), slice(new, new_end)))
        old, new = old_end, new_end
    return groups
