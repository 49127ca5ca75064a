"""Share architectures out to devices, so that all are done at the same time.

In: lowered architectures. Out: for each, an estimate of the seconds its loss and gradient take, and
the device that gets it. The estimate depends on the plan alone: every process, and a run that
resumes, shares out alike.
"""

import math
from collections.abc import Sequence

from ghn_jax.targets.plan import Plan

# Only their ratios matter. Fitted by `benchmarks/balance.py --num_architectures 56` to whole
# networks on two cores of an AMD EPYC, nothing else running; the logarithms of estimates and times
# of the 28 networks that were not fitted correlate with 0.84.
SECONDS_PER_CALL = 3.8e-4
SECONDS_PER_MULTIPLICATION = 6.9e-11
SECONDS_PER_ELEMENT = 2.1e-9


def estimate_seconds(plan: Plan, batch_size: int) -> float:
    """Estimate how long the forward and the backward pass of a network take.

    Args:
        plan: The lowered architecture.
        batch_size: Number of images.

    Returns:
        Seconds, on the machine that the constants were measured on.
    """
    calls, multiplications, elements = count_work(plan, batch_size)
    return (
        SECONDS_PER_CALL * calls
        + SECONDS_PER_MULTIPLICATION * multiplications
        + SECONDS_PER_ELEMENT * elements
    )


def count_work(plan: Plan, batch_size: int) -> tuple[int, int, int]:
    """Count blocks, multiplications by parameters, and elements of all blocks' outputs."""
    multiplications = elements = 0
    for call in plan.calls:
        elements += batch_size * math.prod(call.output_shape)
        positions = batch_size * math.prod(call.output_shape[:-1])
        multiplications += positions * sum(
            math.prod(tensor.shape) for tensor in call.tensors if len(tensor.shape) > 1
        )
    return len(plan.calls), multiplications, elements


def share_out(costs: Sequence[float], num_shares: int) -> list[list[int]]:
    """Share items out evenly: the costliest first, each to the cheapest share that has room.

    No share gets more than ceil(items / shares), so that what a device is sent has one size.

    Args:
        costs: Of the items.
        num_shares: How many shares.

    Returns:
        For each share, positions in `costs`, ascending.
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
