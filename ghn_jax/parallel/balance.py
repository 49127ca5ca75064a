"""Distribute architectures over devices such that all devices finish at the same time.

For each lowered architecture, this module estimates the seconds that its loss and gradient take,
and chooses a device. Estimates depend on the plans alone, so every process, and a run that resumes,
distributes them in the same way.
"""

import math
from collections.abc import Sequence

from ghn_jax.targets.plan import Plan

# Only the ratios matter. Fitted by `benchmarks/balance.py --num_architectures 56` to whole networks
# on two cores of an AMD EPYC with nothing else running; on the 28 networks left out of the fit, the
# logarithms of estimates and measured times have a correlation of 0.84.
SECONDS_PER_CALL = 3.8e-4
SECONDS_PER_MULTIPLICATION = 6.9e-11
SECONDS_PER_ELEMENT = 2.1e-9


def estimate_seconds(plan: Plan, batch_size: int) -> float:
    """Estimate how long the forward and backward passes of a network take.

    Args:
        plan: The lowered architecture.
        batch_size: Number of images.

    Returns:
        Seconds, on the machine on which the constants were measured.
    """
    calls, multiplications, elements = count_work(plan, batch_size)
    return (
        SECONDS_PER_CALL * calls
        + SECONDS_PER_MULTIPLICATION * multiplications
        + SECONDS_PER_ELEMENT * elements
    )


def count_work(plan: Plan, batch_size: int) -> tuple[int, int, int]:
    """Count a network's blocks, multiplications by parameters, and output elements of all blocks.

    Args:
        plan: The lowered architecture.
        batch_size: Number of images.

    Returns:
        The three counts.
    """
    multiplications = elements = 0
    for call in plan.calls:
        elements += batch_size * math.prod(call.output_shape)
        positions = batch_size * math.prod(call.output_shape[:-1])
        multiplications += positions * sum(
            math.prod(tensor.shape) for tensor in call.tensors if len(tensor.shape) > 1
        )
    return len(plan.calls), multiplications, elements


def share_out(costs: Sequence[float], num_shares: int) -> list[list[int]]:
    """Distribute items evenly: in order of decreasing cost, each to the cheapest share with room.

    No share gets more than ceil(items / shares) items, so that devices can pad their work to one
    size.

    Args:
        costs: Cost of each item.
        num_shares: Number of shares.

    Returns:
        For each share, the positions of its items in `costs`, in ascending order.
    """
    capacity = -(-len(costs) // num_shares)
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    totals = [0.0] * num_shares
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        open_shares = [k for k in range(num_shares) if len(shares[k]) < capacity]
        share = min(open_shares, key=lambda k: (totals[k], k))
        shares[share].append(item)
        totals[share] += costs[item]
    return [sorted(share) for share in shares]
