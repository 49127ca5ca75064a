"""Views: what is written through a chain of rearrangements is what numpy reads through it."""

import numpy as np
import pytest

from ghn_jax.tracing.views import View, align_reshape

CHAINS = {  # (on a view, on an array)
    "reshape": (lambda v: v.reshape((6, 20)), lambda a: a.reshape(6, 20)),
    "transpose": (lambda v: v.transpose((2, 0, 1)), lambda a: a.transpose(2, 0, 1)),
    "reverse": (lambda v: v.reverse((0, 2)), lambda a: a[::-1, :, ::-1]),
    "row": (
        lambda v: (
            v.slice((slice(1, 2), slice(0, 5), slice(0, 6))).reshape((5, 6)).transpose((1, 0))
        ),
        lambda a: a[1].T,
    ),
    "slice of a transpose": (
        lambda v: v.transpose((2, 1, 0)).slice((slice(0, 6, 2), slice(1, 4), slice(0, 4))),
        lambda a: a.transpose(2, 1, 0)[::2, 1:4],
    ),
    "slice of a reshape, reshaped": (
        lambda v: v.reshape((20, 6)).slice((slice(3, 9), slice(2, 6))).reshape((4, 6)),
        lambda a: a.reshape(20, 6)[3:9, 2:].reshape(4, 6),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_restore_is_the_inverse(name):
    rearrange, read = CHAINS[name]
    view = rearrange(View(0, (4, 5, 6)))
    array = np.zeros((4, 5, 6))
    value = 1 + np.arange(view.size, dtype=float).reshape(view.shape)
    view.restore(array, value)
    np.testing.assert_array_equal(read(array), value)
    assert np.count_nonzero(array) == view.size  # and nothing else was written


def test_regions_tell_parts_whatever_their_order():
    view = View(3, (4, 6))
    first, second = (view.slice((slice(2 * i, 2 * i + 2), slice(0, 6))) for i in range(2))
    assert first.region == first.transpose((1, 0)).region
    assert len({view.region, first.region, second.region}) == 3


@pytest.mark.parametrize(
    ("compact", "shape", "new_shape", "expected"),
    [
        ((1, 1, 8), (7, 1, 8), (7, 8), (1, 8)),
        ((1, 8), (7, 8), (7, 2, 4), (1, 2, 4)),
        ((1, 1, 8), (7, 3, 8), (21, 8), (1, 8)),
        ((1, 8), (7, 8), (56,), None),  # an axis that repeats joins one that does not
        ((4, 6), (4, 6), (24,), (24,)),
    ],
)
def test_reshapes_of_what_repeats(compact, shape, new_shape, expected):
    assert align_reshape(compact, shape, new_shape) == expected
