"""Networks with the number of images written in them, which runs on another number show.

A tracing replaces the batch by one of another size. A network that says `x.reshape(4, -1)` then
computes something else, if it runs at all. In: the computation on that other number of images. Out:
the operation at fault and its line of code, for the error.
"""

import linecache
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from ghn_jax.tracing.jaxprs import walk_equations

# Their code stands between a network's line and the primitive.
_LIBRARIES = ("jax", "flax", "haiku", "equinox", "einops", "ghn_jax")


def find_fixed_batch(jaxpr: Any, batch_size: int, given_size: int) -> str | None:
    """Find an operation that puts the number of images that was given in the place of the batch.

    Args:
        jaxpr: The network's computation on another number of images.
        batch_size: That number, a prime whose multiples hold the batch.
        given_size: The number of images that was given.

    Returns:
        The operation, its shapes with N for the batch, and its line of code; None if there is none.
    """
    for eqn in walk_equations(jaxpr):
        if eqn.primitive.name not in ("reshape", "slice"):
            continue
        old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        if _fixes_batch(eqn, old, new, batch_size, given_size):
            return _describe(eqn, batch_size)
    return None


def explain_failure(
    function: Callable[..., Any], arguments: Sequence[Any], batch_size: int, given_size: int
) -> str:
    """Say at which operation a network fails on another number of images.

    Args:
        function: The network.
        arguments: Its variables for the given images, and inputs of the other number.
        batch_size: That number.
        given_size: The number of images that was given.

    Returns:
        What fixes the batch before the failure, or makes features of it, if that is found, else
        what fails.
    """
    errors: list[Exception] = []

    def run(*arguments):
        try:
            return function(*arguments)
        except Exception as error:  # what was traced until then is read
            errors.append(error)
            return ()

    jaxpr = jax.make_jaxpr(run)(*arguments)
    found = find_fixed_batch(jaxpr, batch_size, given_size)
    if found or not errors:
        return found or "its parameters' shapes depend on the number of images"
    folds = [eqn for eqn in walk_equations(jaxpr) if _folds_batch(eqn, batch_size)]
    if folds:  # flattens images, too: the features that the network fails on come of the last one
        return _describe(folds[-1], batch_size)
    first = (str(errors[0]).splitlines() or [type(errors[0]).__name__])[0]
    stack = traceback.extract_tb(errors[0].__traceback__)
    return first + _locate((frame.filename, frame.lineno or 0) for frame in reversed(stack))


def _fixes_batch(eqn, old, new, batch_size, given_size) -> bool:
    if not (old and new and old[0] and old[0] % batch_size == 0) or new[0] != given_size:
        return False
    if eqn.primitive.name == "reshape":  # a batch behind it stays one, as in an ensemble
        return not {batch_size, old[0]} & set(new[1:])
    return given_size > 1 and eqn.params["start_indices"][0] == 0  # x[:1] may be anything


def _folds_batch(eqn, batch_size) -> bool:
    if eqn.primitive.name != "reshape":
        return False
    size = next(reversed(eqn.outvars[0].aval.shape), 0)
    return size > batch_size and size % batch_size == 0


def _describe(eqn, batch_size) -> str:
    old, new = (_show(var.aval.shape, batch_size) for var in (eqn.invars[0], eqn.outvars[0]))
    frames = getattr(eqn.source_info.traceback, "frames", ())
    lines = ((frame.file_name, frame.line_num) for frame in frames)
    return f"{eqn.primitive.name} of {old} to {new}{_locate(lines)}"


def _show(shape, batch_size) -> str:
    """The shape with N for the batch."""
    sizes = [_show_size(size, batch_size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _show_size(size, batch_size) -> str:
    count, rest = divmod(size, batch_size)
    if rest or not count:
        return str(size)
    return "N" if count == 1 else f"{count} * N"


def _locate(lines: Iterable[tuple[str, int]]) -> str:
    """The network's own line of code; lines from the innermost."""
    folders = tuple(_folders())
    for path, number in lines:
        code = linecache.getline(path, number).strip()
        if code and not path.startswith(folders):
            return f" ({os.path.basename(path)}, line {number}: {code})"
    return ""


def _folders() -> Iterator[str]:
    for name in _LIBRARIES:
        path = getattr(sys.modules.get(name), "__file__", None)
        if path:
            yield os.path.dirname(path) + os.sep
