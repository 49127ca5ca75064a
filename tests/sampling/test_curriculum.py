"""Sizes of architectures by step: by hand, and what is refused."""

import numpy as np
import pytest

from ghn_jax.sampling import CurriculumConfig, SpaceConfig
from ghn_jax.training.config import ExperimentConfig

SPACE = SpaceConfig(widths=(16, 32))


def test_sizes_by_hand():
    curriculum = CurriculumConfig(
        num_cells=((100, 4, 6), (200, 4, 18)), widths=((0, (16,)), (150, (16, 32)))
    )

    def at(step):
        space = curriculum.space_at(SPACE, step, seed=0, index=0)
        return space.num_cells, space.widths

    assert at(0) == ((4, 6), (16,))
    assert at(100) == ((4, 6), (16,))
    assert at(149.9) == ((4, 12), (16,))  # 6 + 12 * 0.499 = 11.988
    assert at(150) == ((4, 12), (16, 32))
    assert at(10**6) == ((4, 18), (16, 32))


def test_without_milestones_the_space_is_as_it_is():
    assert CurriculumConfig().space_at(SPACE, 5, 0, 0) is SPACE
    late = CurriculumConfig(widths=((10, (16,)),))
    assert late.space_at(SPACE, 9, 0, 0).widths == (16, 32)


def test_a_share_is_of_the_whole_space():
    curriculum = CurriculumConfig(num_cells=((0, 4, 4),), whole_space_share=0.25)
    drawn = [curriculum.space_at(SPACE, 0, 3, index) for index in range(1000)]
    share = np.mean([space.num_cells is None for space in drawn])
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1000)  # four standard deviations
    assert drawn == [curriculum.space_at(SPACE, 0, 3, index) for index in range(1000)]
    assert drawn != [curriculum.space_at(SPACE, 0, 4, index) for index in range(1000)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_cells": [[5, 4, 6], [5, 4, 8]]}, r"curriculum\.num_cells is .*expected steps of at"),
        ({"num_cells": [[-1, 4, 6]]}, "expected steps of at least 0, ascending"),
        ({"num_cells": [[0, 6, 4]]}, r"curriculum\.num_cells\[0\] is \(0, 6, 4\), expected \(step"),
        ({"num_cells": [[0, 4]]}, r"curriculum\.num_cells\[0\] is \[0, 4\], expected 3 values"),
        ({"widths": [[0, [15]]]}, "curriculum gives space a value it cannot have: widths contains"),
        ({"whole_space_share": 1.5}, r"whole_space_share is 1\.5, expected a number in \[0, 1\)"),
    ],
)
def test_what_does_not_fit_is_named(fields, expected):
    with pytest.raises(ValueError, match=expected):
        ExperimentConfig.from_dict({"curriculum": fields})
