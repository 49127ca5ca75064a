"""Sharing architectures out to devices."""

import numpy as np
import pytest
from plain_composition import one_cell

from ghn_jax.parallel.balance import count_work, estimate_seconds, share_out


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
    # Of `one_cell`: see its plan; here every block's work is added up the long way.
    plan = one_cell("conv_1x1", "skip_connect")
    multiplications = elements = 0
    for call in plan.calls:
        elements += 4 * int(np.prod(call.output_shape))
        for tensor in call.tensors:
            if len(tensor.shape) == 4:  # a kernel is applied at every pixel
                height, width, _ = call.output_shape
                multiplications += 4 * height * width * int(np.prod(tensor.shape))
            if len(tensor.shape) == 2:
                multiplications += 4 * int(np.prod(tensor.shape))
    assert count_work(plan, 4) == (len(plan.calls), multiplications, elements)
    assert estimate_seconds(plan, 8) > estimate_seconds(plan, 4) > 0
