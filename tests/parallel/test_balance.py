"""Sharing architectures out to devices."""

import numpy as np
import pytest
from plain_composition import one_cell

from ghn_jax.parallel.balance import count_work, estimate_seconds, share_out
from ghn_jax.training.trainer import _summarize


@pytest.mark.parametrize(
    ("costs", "num_shares", "expected"),
    [
        # 5 | 3 + 2, worked out by hand: the costliest first, each to the cheapest share.
        ([3.0, 5.0, 2.0], 2, [[1], [0, 2]]),
        # 4 would go to the second share, which has its two already.
        ([9.0, 1.0, 1.0, 1.0], 2, [[0, 3], [1, 2]]),
        ([1.0], 3, [[0], [], []]),
        ([], 2, [[], []]),
        ([2.0, 2.0, 2.0, 2.0], 4, [[0], [1], [2], [3]]),
    ],
)
def test_share_out(costs, num_shares, expected):
    assert share_out(costs, num_shares) == expected


def test_every_item_has_one_share_of_bounded_size():
    costs = np.random.default_rng(0).exponential(size=50).tolist()
    shares = share_out(costs, 8)
    assert sorted(item for share in shares for item in share) == list(range(50))
    assert max(map(len, shares)) <= 7
    totals = [sum(costs[item] for item in share) for share in shares]
    in_order = [sum(costs[item] for item in range(k, 50, 8)) for k in range(8)]
    assert max(totals) - min(totals) < max(in_order) - min(in_order)


def test_work_of_a_network_by_hand():
    # Stem (3x3, 3 -> 16), its norm, a 1x1 convolution (16 -> 16), its norm, the sum with the skip,
    # pooling, and a linear layer to 10 classes; images of 8x8 pixels, 4 of them.
    plan = one_cell("conv_1x1", "skip_connect")
    multiplications = 4 * (64 * 9 * 3 * 16 + 64 * 16 * 16 + 16 * 10)
    elements = 4 * (5 * 64 * 16 + 16 + 10)
    assert count_work(plan, 4) == (7, multiplications, elements)
    seconds = 7 * 3.8e-4 + 6.9e-11 * multiplications + 2.1e-9 * elements
    assert estimate_seconds(plan, 4) == pytest.approx(seconds)


def test_the_costliest_go_first():
    # In the order given, or the cheapest first, the last one lands on a share that has two already.
    assert share_out([1.0, 1.0, 1.0, 1.0, 4.0], 2) == [[3, 4], [0, 1, 2]]


def test_balance_is_the_mean_over_the_longest():
    longest, balance = _summarize([{"a": 1.0, "b": 2.0}, {"a": 0.5, "b": 0.5}])
    assert longest == {"a": 1.0, "b": 2.0}
    assert balance == pytest.approx((3.0 + 1.0) / 2 / 3.0)
    assert _summarize([]) == ({}, 1.0)
